// Curves of a report, drawn with uPlot in the colours of the page.
"use strict";
(() => {
  const HEIGHT = 200;
  const WHOLE = [1, 2, 5, 10, 20, 50, 100, 200, 500, 1000, 2000, 5000, 10000, 50000, 100000]; // layers and steps

  function draw(element) {
    const points = JSON.parse(element.dataset.points);
    const style = getComputedStyle(element);
    const colour = (name) => style.getPropertyValue(name).trim();
    const axis = { stroke: colour("--soft"), grid: { stroke: colour("--line") }, ticks: { stroke: colour("--line") } };
    const options = {
      width: element.clientWidth,
      height: HEIGHT,
      scales: { x: { time: false } },
      axes: [{ ...axis, incrs: WHOLE }, { ...axis, size: 62 }],
      series: [
        { label: element.dataset.x },
        { label: element.dataset.y, stroke: colour("--accent"), width: 2, points: { size: 6 } },
      ],
    };
    const plot = new uPlot(options, points, element);
    new ResizeObserver(() => plot.setSize({ width: element.clientWidth, height: HEIGHT })).observe(element);
    element.dataset.drawn = "yes";
  }

  function drawAll() {
    for (const element of document.querySelectorAll(".plot:not([data-drawn])")) draw(element);
  }

  drawAll();
  document.addEventListener("htmx:after:swap", drawAll);
})();
