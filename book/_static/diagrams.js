// Draws the page's Mermaid diagrams, and draws them again when the reader switches light and dark.
(function () {
  "use strict";
  const diagrams = Array.from(document.querySelectorAll("pre.mermaid"));
  const sources = diagrams.map((diagram) => diagram.textContent);
  let drawing = Promise.resolve();

  async function draw() {
    const dark = document.documentElement.dataset.theme === "dark";
    window.mermaid.initialize({
      startOnLoad: false,
      securityLevel: "strict",
      flowchart: { useMaxWidth: false },
      theme: dark ? "dark" : "neutral",
      fontFamily: getComputedStyle(document.body).fontFamily,
    });
    for (const [index, diagram] of diagrams.entries()) {
      const { svg } = await window.mermaid.render(`diagram-${index}`, sources[index]);
      diagram.innerHTML = svg; // Mermaid's own, sanitized by its strict level
      diagram.dataset.drawn = "yes";
    }
  }

  function schedule() {
    drawing = drawing.then(draw).catch((error) => console.error("a diagram cannot be drawn:", error));
  }

  new MutationObserver(schedule).observe(document.documentElement, { attributeFilter: ["data-theme"] });
  schedule();
})();
