// What the stream's end by refusal means: the session is over, or the job is gone. The server knows what to show.
"use strict";
document.addEventListener("htmx:sse:error", (event) => {
  if ([401, 404].includes(event.detail.status)) location.reload();
});
