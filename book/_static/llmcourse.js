// Small things that every page of the website needs.

document.addEventListener("DOMContentLoaded", () => {
  "use strict";
  // Widgets typeset their labels through MathJax 2's queue, which this page's MathJax 3 does not have.
  // Only now: MathJax puts its own object in place when its (deferred) script runs.
  if (window.MathJax) window.MathJax.Hub = window.MathJax.Hub || { Queue() {} };

  const nav = document.querySelector(".llmcourse-languages");
  const languages = window.llmcourseLanguages || {};
  const mine = nav?.dataset.language.replace("-", "_");
  const here = languages[mine];
  if (!here || Object.keys(languages).length < 2) return;
  // The root of this language's pages, then up to the site if the language lives in a folder of it.
  const root = (nav.dataset.root || "./") + (here.path ? "../" : "");
  for (const [code, language] of Object.entries(languages)) {
    if (code === mine) continue;
    const link = document.createElement("a");
    link.href = root + language.path + nav.dataset.page;
    link.lang = code.replace("_", "-");
    link.hreflang = link.lang;
    link.textContent = language.name;
    nav.append(link);
  }
  nav.hidden = false;
});
