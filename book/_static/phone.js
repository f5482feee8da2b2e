// What a phone's width asks for: lines of code that hang, equations that fit.
// Each line of a block is an element, so that the rest of a long one is indented.
document.addEventListener("DOMContentLoaded", () => {
  for (const pre of document.querySelectorAll(".bd-article pre")) {
    const lines = pre.innerHTML.split("\n");
    const whole = (x) => (x.match(/<\w/g) ?? []).length === (x.match(/<\//g) ?? []).length;
    if (!lines.every(whole)) continue;
    if (lines.at(-1).replace(/<[^>]*>/g, "") === "") lines.pop();
    pre.innerHTML = lines.map((line) => {
      const indent = line.replace(/<[^>]*>/g, "").match(/^ */)[0].length;
      return `<span class="zolab-line" style="--hang:${Math.min(indent, 12) + 2}ch">${line}\n</span>`;
    }).join("");
  }
});
// An equation a little wider than the page is set smaller; below 0.64 it scrolls.
window.addEventListener("load", async () => {
  if (innerWidth > 600 || !window.MathJax?.startup) return;
  await MathJax.startup.promise;
  for (const equation of document.querySelectorAll('mjx-container[display="true"]')) {
    const room = equation.closest("div.math")?.clientWidth;
    const share = room / equation.scrollWidth;
    if (room && share < 1)
      equation.style.setProperty("font-size", `${95 * Math.max(0.64, 0.98 * share)}%`, "important");
  }
});
