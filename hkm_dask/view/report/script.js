// Turns cluster names into buttons; the marked clusters are put into a command that excludes them.
(() => {
  const bar = document.getElementById("marked"), code = bar.querySelector("code"), copy = bar.querySelector("button");
  const marked = new Set();
  const show = () => {
    bar.hidden = marked.size === 0;
    code.textContent = bar.dataset.command.replace("CLUSTERS", [...marked].join(","));
    document.querySelectorAll("button.name").forEach((b) => b.setAttribute("aria-pressed", marked.has(b.dataset.cluster)));
  };
  document.querySelectorAll("span.name").forEach((span) => {
    const button = document.createElement("button");
    button.type = "button"; button.className = "name"; button.dataset.cluster = span.dataset.cluster;
    button.textContent = span.textContent; button.setAttribute("aria-label", "Exclude cluster " + span.dataset.cluster);
    button.addEventListener("click", (event) => {
      event.preventDefault();
      const c = button.dataset.cluster;
      if (!marked.delete(c)) marked.add(c);
      show();
    });
    span.replaceWith(button);
  });
  copy.addEventListener("click", async () => {
    try { await navigator.clipboard.writeText(code.textContent); copy.textContent = "Copied"; }
    catch { getSelection().selectAllChildren(code); }
  });
  show();
})();
