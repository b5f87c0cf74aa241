// Curves, drawn with uPlot in the colours of the page. News replaces the numbers and leaves the reader's zoom alone.
"use strict";
(() => {
  const HEIGHT = 200;
  const WHOLE = [1, 2, 5, 10, 20, 50, 100, 200, 500, 1000, 2000, 5000, 10000, 50000, 100000]; // layers, steps and seconds
  const BYTES = ["B", "kB", "MB", "GB", "TB", "PB"];
  const COLOURS = 5;
  const plots = new WeakMap(); // element -> { plot, text, shape }

  function colour(element, name) {
    return () => getComputedStyle(element).getPropertyValue(name).trim();
  }

  // One table of all curves over the union of their steps: mean, and low and high where there is a band.
  function table(lines) {
    const columns = (line) => [line.x, line.mean, ...(line.low ? [line.low, line.high] : [])];
    return uPlot.join(lines.map(columns), lines.map((line) => columns(line).map(() => 2)));
  }

  // Four digits, as everywhere; the very small as a power of ten, which the library would write as 0.
  function number(value) {
    if (value === null || value === undefined) return "–";
    if (value !== 0 && Math.abs(value) < 1e-3) return value.toExponential(1);
    return value.toLocaleString("en-US", { maximumSignificantDigits: 4 });
  }

  // Decimal units, as everywhere.
  function bytes(value) {
    if (!value) return number(value);
    const unit = Math.min(BYTES.length - 1, Math.max(0, Math.floor(Math.log10(Math.abs(value)) / 3)));
    return `${number(value / 1000 ** unit)} ${BYTES[unit]}`;
  }

  function series(element, lines, written) {
    const found = [], bands = [];
    const value = (_, shown) => written(shown);
    lines.forEach((line, place) => {
      const stroke = colour(element, `--curve-${place % COLOURS}`);
      const few = line.x.length <= 40;
      found.push({ label: line.label, value, stroke, width: 2, spanGaps: true, points: { show: few, size: 5, fill: stroke } });
      if (!line.low) return;
      const edge = { value, stroke: "transparent", width: 0, spanGaps: true, points: { show: false } };
      found.push({ ...edge, label: "least" }, { ...edge, label: "most" });
      bands.push({ series: [found.length, found.length - 1], fill: colour(element, `--band-${place % COLOURS}`) });
    });
    return { found, bands };
  }

  function draw(element, data) {
    const line = colour(element, "--line");
    const axis = { stroke: colour(element, "--soft"), grid: { stroke: line, width: 1 }, ticks: { stroke: line, width: 1 } };
    const written = data.inBytes ? bytes : number;
    const { found, bands } = series(element, data.lines, written);
    const options = {
      width: element.clientWidth,
      height: HEIGHT,
      scales: { x: { time: false } },
      axes: [{ ...axis, incrs: WHOLE, space: 60 }, { ...axis, size: 62, values: (_, marks) => marks.map(written) }],
      series: [{ label: data.x }, ...found],
      bands,
      cursor: { points: { size: 7 } },
      hooks: { setScale: [(plot, scale) => scale === "x" && tell(plot)] },
    };
    const plot = new uPlot(options, table(data.lines), element);
    plot.root.append(wayBack(plot, data.x));
    new ResizeObserver(() => plot.setSize({ width: element.clientWidth, height: HEIGHT })).observe(element);
    return plot;
  }

  // Whether the reader looks at less than all there was.
  function zoomOf(plot) {
    const { min, max } = plot.scales.x, steps = plot.data[0];
    return steps.length && (min > steps[0] || max < steps[steps.length - 1]) ? { min, max } : null;
  }

  function wayBack(plot, x) {
    const button = document.createElement("button");
    Object.assign(button, { type: "button", className: "all small", hidden: true, textContent: `Show every ${x}` });
    button.addEventListener("click", () => plot.setData(plot.data));
    return button;
  }

  function tell(plot) {
    const button = plot.root.querySelector(".all"), zoom = zoomOf(plot);
    if (!button) return;
    button.hidden = !zoom;
    if (zoom) button.title = `${Math.ceil(zoom.min)} to ${Math.floor(zoom.max)} are shown`;
  }

  function renew(known, data) {
    const zoom = zoomOf(known.plot);
    known.plot.setData(table(data.lines), !zoom);
    if (zoom) known.plot.setScale("x", zoom);
  }

  function show(element) {
    const text = element.dataset.plot, known = plots.get(element);
    if (known?.text === text) return;
    const data = JSON.parse(text), shape = data.lines.map((line) => line.label + Boolean(line.low)).join();
    if (known?.shape === shape) {
      renew(known, data);
      known.text = text;
      return;
    }
    known?.plot.destroy();
    plots.set(element, { plot: draw(element, data), text, shape });
  }

  function showAll() {
    for (const element of document.querySelectorAll(".plot")) show(element);
  }

  showAll();
  document.addEventListener("htmx:after:swap", showAll);
  function recolour() {
    for (const element of document.querySelectorAll(".plot")) plots.get(element)?.plot.redraw(false);
  }

  matchMedia("(prefers-color-scheme: dark)").addEventListener("change", recolour);
  document.addEventListener("lathe:theme", recolour);
})();
