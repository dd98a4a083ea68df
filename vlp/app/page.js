(() => {
  const KEYS = {
    a: "vlp-accept", r: "vlp-reject", u: "vlp-undo", arrowright: "vlp-next", arrowleft: "vlp-back",
    arrowup: "vlp-up", arrowdown: "vlp-down",
  };
  const WIDGETS = "input, textarea, select, [contenteditable='true'], [role=tab], [role=listbox], [role=option]";
  let waits = false; // a key is only taken when the card shows what it is about
  const shown = () => document.querySelector("#vlp-shown textarea, #vlp-shown input")?.value;
  document.addEventListener("keydown", (event) => {
    const id = KEYS[event.key.toLowerCase()];
    const button = id && document.getElementById(id);
    if (!button || !button.offsetParent || event.ctrlKey || event.altKey || event.metaKey) return;
    // Sliders, tabs and lists take arrow keys, but no letters.
    const free = event.key.length === 1 && event.target.matches("input[type=range], input[readonly], [role=tab]");
    if (event.target.closest(WIDGETS) && !free) return;
    event.preventDefault();
    if (waits || event.repeat) return;
    waits = true;
    const before = shown();
    const started = Date.now();
    const timer = setInterval(() => {
      const row = shown()?.split(":")[1];
      const drawn = document.querySelector("#vlp-review-card .vlp-card")?.dataset.row ?? "-1";
      if ((shown() !== before && row === drawn) || Date.now() - started > 5000) {
        waits = false;
        clearInterval(timer);
      }
    }, 15);
    button.click();
  });
  document.addEventListener("click", (event) => { // a tab that the mouse chose leaves the arrow keys to the review
    if (event.detail && event.target.closest("[role=tab]")) document.activeElement.blur();
  });
  // A reload keeps the tab and the typed rule.
  const KEPT = "vlp-kept";
  const kept = JSON.parse(sessionStorage.getItem(KEPT) ?? "{}");
  window.vlpKeptRule = (rule) => kept.rule ?? rule;
  const ruleBox = () => document.querySelector("#vlp-rule textarea");
  addEventListener("pagehide", () => {
    const tab = document.querySelector("[role=tab][aria-selected=true]")?.textContent.trim() ?? kept.tab;
    const rule = ruleBox()?.value ?? kept.rule; // the box is not there before its tab was open
    sessionStorage.setItem(KEPT, JSON.stringify({ tab, rule }));
  });
  const openKeptTab = () => {
    const tab = [...document.querySelectorAll("[role=tab]")].find((one) => one.textContent.trim() === kept.tab);
    if (tab && tab.getAttribute("aria-selected") !== "true") tab.click();
    return tab;
  };
  if (kept.tab) new MutationObserver((_, watcher) => openKeptTab() && watcher.disconnect())
    .observe(document.documentElement, { childList: true, subtree: true });
  document.addEventListener("click", async (event) => {
    const button = event.target.closest(".vlp-copy");
    if (!button) return;
    const text = button.parentElement.querySelector("code").textContent;
    try {
      await navigator.clipboard.writeText(text);
    } catch { // no permission, or no secure connection
      const area = document.createElement("textarea");
      area.value = text;
      document.body.append(area);
      area.select();
      document.execCommand("copy");
      area.remove();
    }
    button.textContent = "Copied";
    setTimeout(() => { button.textContent = "Copy"; }, 1500);
  });
})();
