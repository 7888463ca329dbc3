"use strict";
(() => {
  const tip = document.getElementById("tip");
  let shown = null;

  // The title of a mark becomes its label: the browser's own tip would lie over ours.
  for (const mark of document.querySelectorAll(".mark")) {
    const title = mark.querySelector("title");
    mark.setAttribute("aria-label", title.textContent.replaceAll("\n", ", "));
    mark.dataset.tip = title.textContent;
    title.remove();
  }

  function hide() {
    if (shown) shown.classList.remove("on");
    shown = null;
    tip.hidden = true;
  }

  function centre(mark) {
    const box = mark.querySelector(".ring").getBoundingClientRect();
    return { x: box.left + box.width / 2, y: box.top + box.height / 2 };
  }

  function show(mark) {
    if (shown !== mark) {
      hide();
      shown = mark;
      mark.classList.add("on");
      tip.textContent = mark.dataset.tip;
      tip.hidden = false;
    }
    const at = centre(mark);
    const page = document.documentElement.clientWidth;
    const left = Math.min(Math.max(at.x - tip.offsetWidth / 2, 8), page - tip.offsetWidth - 8);
    const above = at.y - tip.offsetHeight - 16;
    tip.style.left = `${left + window.scrollX}px`;
    tip.style.top = `${(above > 4 ? above : at.y + 18) + window.scrollY}px`;
  }

  // One stop of the Tab key per plot; arrows walk along a line, or from one line to the next.
  for (const area of document.querySelectorAll(".area")) {
    const lines = [...area.querySelectorAll("g, li")]
      .map((line) => [...line.querySelectorAll(".mark")])
      .filter((marks) => marks.length);
    const marks = lines.flat();
    if (!marks.length) continue;
    marks[0].setAttribute("tabindex", "0");

    function nearest(event) {
      let best = null;
      let least = 48;
      for (const mark of marks) {
        const at = centre(mark);
        const distance = Math.hypot(at.x - event.clientX, at.y - event.clientY);
        if (distance < least) [best, least] = [mark, distance];
      }
      return best;
    }

    function point(event) {
      const mark = nearest(event);
      if (mark) show(mark);
      else hide();
    }

    area.addEventListener("pointermove", point);
    area.addEventListener("pointerdown", point);
    area.addEventListener("pointerleave", (event) => {
      if (event.pointerType === "mouse") hide();
    });
    // On the box around it: a browser may take an SVG element that listens for focus for one that can have it.
    const chart = area.closest(".chart");
    chart.addEventListener("focusin", (event) => {
      const mark = event.target.closest(".mark");
      if (!mark) return;
      for (const other of marks) other.setAttribute("tabindex", other === mark ? "0" : "-1");
      show(mark);
    });
    chart.addEventListener("focusout", hide);
    chart.addEventListener("keydown", (event) => {
      const mark = event.target.closest(".mark");
      if (!mark) return;
      const row = lines.findIndex((line) => line.includes(mark));
      const column = lines[row].indexOf(mark);
      const alone = lines.every((line) => line.length === 1);
      const across = { ArrowLeft: -1, ArrowRight: 1 }[event.key];
      const down = { ArrowUp: -1, ArrowDown: 1 }[event.key] ?? (alone ? across : undefined);
      let next;
      if (down !== undefined) {
        const line = lines[(row + down + lines.length) % lines.length];
        next = line[Math.min(column, line.length - 1)];
      } else if (across !== undefined) {
        next = lines[row][Math.min(Math.max(column + across, 0), lines[row].length - 1)];
      } else if (event.key === "Home") next = lines[row][0];
      else if (event.key === "End") next = lines[row].at(-1);
      else if (event.key === "Escape") return hide();
      else return;
      event.preventDefault();
      next.focus();
    });
  }
  document.addEventListener("pointerdown", (event) => {
    if (!event.target.closest(".area")) hide();
  });
  window.addEventListener("resize", hide);

  // Panels become tabs; tabs of one key are chosen together, so that all plots have the same axis.
  const groups = [...document.querySelectorAll(".panels")];
  function choose(key) {
    hide();
    for (const group of groups) {
      const found = [...group.querySelectorAll(":scope > .panel")];
      if (!found.some((panel) => panel.dataset.key === key)) continue;
      for (const panel of found) panel.hidden = panel.dataset.key !== key;
      for (const tab of group.querySelectorAll("[role=tab]")) {
        const on = tab.dataset.key === key;
        tab.setAttribute("aria-selected", String(on));
        tab.setAttribute("tabindex", on ? "0" : "-1");
      }
    }
  }
  groups.forEach((group, number) => {
    const bar = document.createElement("div");
    bar.className = "tabs";
    bar.setAttribute("role", "tablist");
    bar.setAttribute("aria-label", group.dataset.name);
    for (const panel of group.querySelectorAll(":scope > .panel")) {
      const tab = document.createElement("button");
      tab.type = "button";
      tab.textContent = panel.dataset.title;
      tab.dataset.key = panel.dataset.key;
      tab.id = `tab-${number}-${panel.dataset.key}`;
      panel.id = `panel-${number}-${panel.dataset.key}`;
      tab.setAttribute("role", "tab");
      tab.setAttribute("aria-controls", panel.id);
      panel.setAttribute("role", "tabpanel");
      panel.setAttribute("aria-labelledby", tab.id);
      tab.addEventListener("click", () => choose(tab.dataset.key));
      bar.append(tab);
    }
    bar.addEventListener("keydown", (event) => {
      const tabs = [...bar.children];
      const step = { ArrowLeft: -1, ArrowRight: 1 }[event.key];
      if (step === undefined) return;
      event.preventDefault();
      const next = tabs[(tabs.indexOf(event.target) + step + tabs.length) % tabs.length];
      choose(next.dataset.key);
      next.focus();
    });
    group.prepend(bar);
    group.classList.add("tabbed");
    choose(group.querySelector(".panel").dataset.key);
  });

  // A link opens the section or the run that it leads to, and paper has everything.
  function openTarget() {
    const target = document.getElementById(location.hash.slice(1));
    let opened = target?.querySelector(":scope > details.fold") ?? target;
    for (; opened; opened = opened.parentElement) {
      if (opened instanceof HTMLDetailsElement) opened.open = true;
    }
  }
  window.addEventListener("hashchange", openTarget);
  openTarget();
  let closed = [];
  window.addEventListener("beforeprint", () => {
    hide();
    closed = [...document.querySelectorAll("details:not([open])")];
    for (const details of closed) details.open = true;
  });
  window.addEventListener("afterprint", () => {
    for (const details of closed) details.open = false;
  });
})();
