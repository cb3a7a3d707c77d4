// What happens in the browser alone: views, themes, drops, the wipe, the zoom, and points under a finger.
// All state that matters is on the server; this file asks nothing of any other machine.
"use strict";
(() => {
  const all = (query, root = document) => [...root.querySelectorAll(query)];
  const emit = (element, name, detail) => element.dispatchEvent(new CustomEvent(name, { detail }));
  const words = () => JSON.parse(document.getElementById("words").textContent);

  // --- views and tabs, kept in the address and in the tab ----------------------------------------------------
  function show(view) {
    if (!document.getElementById("view-" + view)) view = "start";
    all(".view").forEach((one) => (one.hidden = one.id !== "view-" + view));
    all("nav [data-view]").forEach((one) => {
      one.dataset.view === view ? one.setAttribute("aria-current", "page") : one.removeAttribute("aria-current");
    });
    document.body.dataset.view = view;
    if (location.hash.slice(1) !== view) history.replaceState(null, "", "#" + view);
  }
  function tab(name) {
    all(".tab").forEach((one) => (one.hidden = one.dataset.tab !== name));
    all("[data-to-tab]").forEach((one) => one.setAttribute("aria-pressed", String(one.dataset.toTab === name)));
    sessionStorage.setItem("tab", name);
  }
  function theme(name) {
    document.documentElement.dataset.theme = name;
    localStorage.setItem("theme", name);
  }
  theme(localStorage.getItem("theme") || (matchMedia("(prefers-color-scheme: dark)").matches ? "dark" : "light"));
  addEventListener("hashchange", () => show(location.hash.slice(1)));

  document.addEventListener("click", (event) => {
    const to = event.target.closest("[data-view],[data-to-tab],[data-theme-switch],[data-zoom],[data-browse],[data-ask],.ask [data-close]");
    if (!to || to === document.body) return;
    if (to.dataset.view) show(to.dataset.view), scrollTo(0, 0);
    if (to.dataset.toTab) tab(to.dataset.toTab);
    if ("themeSwitch" in to.dataset) theme(document.documentElement.dataset.theme === "dark" ? "light" : "dark");
    if ("zoom" in to.dataset) zoom(to);
    if ("ask" in to.dataset) document.querySelector(".ask").showModal();
    if ("close" in to.dataset) to.closest("dialog").close();
    if (to.dataset.browse) to.closest(".drop").querySelector(to.dataset.browse).click();
  });

  // --- a picture, larger -------------------------------------------------------------------------------------
  function zoom(button) {
    const picture = button.querySelector("img");
    if (!picture || !picture.getAttribute("src")) return;
    const box = document.createElement("dialog"), text = words();
    box.className = "zoom";
    box.setAttribute("aria-label", picture.alt);
    box.innerHTML = '<div class="zoom-bar"><button data-by="1.5"></button><button data-by="0.667"></button>' +
      '<span></span><button data-close></button></div><div class="zoom-room" tabindex="0"><img></div>';
    const [more, less, close] = all("button", box), image = box.querySelector("img");
    [more, less, close].forEach((one, k) => (one.textContent = text.zoom[k]));
    box.querySelector("span").textContent = picture.alt;
    image.src = picture.src;
    image.alt = picture.alt;
    let size = Math.min(innerWidth, innerHeight) - 90;
    const scale = (by) => {
      size = Math.min(6000, Math.max(160, size * by));
      image.style.width = size + "px";
    };
    scale(1);
    box.addEventListener("click", (event) => {
      if (event.target.dataset.by) scale(+event.target.dataset.by);
      if ("close" in event.target.dataset || event.target === box) box.close();
    });
    box.addEventListener("wheel", (event) => {
      if (!event.ctrlKey && event.target !== image) return;
      event.preventDefault();
      scale(event.deltaY < 0 ? 1.15 : 0.87);
    }, { passive: false });
    box.addEventListener("close", () => (box.remove(), button.focus()));
    document.body.append(box);
    box.showModal();
  }

  // --- inputs that tell the server when they rest ------------------------------------------------------------
  document.addEventListener("input", (event) => {
    const input = event.target;
    if (input.matches("[data-wipe]")) input.closest(".wipe").style.setProperty("--wipe", input.value + "%");
    const age = input.closest(".age");
    if (age) {
      const [from, to] = all("input[type=range]", age), unknown = age.querySelector("input[type=checkbox]");
      if (input !== unknown) {
        unknown.checked = false;
        if (+from.value > +to.value) input === from ? (to.value = from.value) : (from.value = to.value);
      }
      age.querySelector("output").textContent = unknown.checked ? words().unknown : from.value + "–" + to.value;
      paint(age);
      clearTimeout(age.timer);
      age.timer = setTimeout(() => emit(age, "age", unknown.checked ? [] : [+from.value, +to.value]), 250);
    }
    if (input.matches("[data-pull]")) {
      input.nextElementSibling.textContent = +input.value ? (+input.value).toFixed(3) : words().off;
      clearTimeout(input.timer);
      input.timer = setTimeout(() => emit(input, "pull", +input.value), 300);
    }
  });
  function paint(age) {
    const [from, to] = all("input[type=range]", age), span = from.max - from.min;
    age.style.setProperty("--from", (100 * (from.value - from.min)) / span + "%");
    age.style.setProperty("--to", (100 * (to.value - from.min)) / span + "%");
  }

  // --- files that are dropped or chosen ----------------------------------------------------------------------
  async function files(entry) {
    if (entry.isFile) return [await new Promise((done, fail) => entry.file(done, fail))];
    const reader = entry.createReader(), found = [];
    for (;;) {
      const some = await new Promise((done, fail) => reader.readEntries(done, fail));
      if (!some.length) return found;
      for (const one of some) if (!one.name.startsWith(".")) found.push(...(await files(one)));
    }
  }
  async function upload(drop, list) {
    const output = drop.querySelector("output"), text = words();
    const batch = String(Math.random()).slice(2);
    if (!list.length) return;
    drop.setAttribute("aria-busy", "true");
    try {
      for (let index = 0; index < list.length; index++) {
        output.textContent = text.sending.replace("{index}", index + 1).replace("{count}", list.length);
        const query = new URLSearchParams({ batch, index, count: list.length, name: list[index].name.slice(-40) });
        const answer = await fetch("studio/upload/" + drop.dataset.kind + "?" + query, { method: "PUT", body: list[index] });
        if (!answer.ok) throw new Error((await answer.json().catch(() => ({}))).message || text.failed);
      }
      output.textContent = "";
    } catch (error) {
      output.textContent = error instanceof TypeError ? text.failed : error.message;
    }
    drop.removeAttribute("aria-busy");
  }
  document.addEventListener("change", (event) => {
    const drop = event.target.closest(".drop");
    if (!drop || event.target.type !== "file") return;
    const chosen = [...event.target.files];
    upload(drop, chosen.length > 1 ? chosen.filter((file) => !file.name.startsWith(".")) : chosen);
    event.target.value = "";
  });
  ["dragover", "dragleave", "drop"].forEach((name) =>
    document.addEventListener(name, async (event) => {
      event.preventDefault();
      const drop = event.target.closest && event.target.closest(".drop");
      all(".drop.over").forEach((one) => one.classList.toggle("over", one === drop && name === "dragover"));
      if (!drop) return;
      drop.classList.toggle("over", name === "dragover");
      if (name !== "drop") return;
      const entries = [...event.dataTransfer.items].map((item) => item.webkitGetAsEntry()).filter(Boolean), list = [];
      for (const entry of entries) list.push(...(await files(entry)));
      upload(drop, list.length ? list : [...event.dataTransfer.files]);
    })
  );

  // --- landmarks ---------------------------------------------------------------------------------------------
  const SIDE = 1000, NEAR = 0.11, NS = "http://www.w3.org/2000/svg";
  let marks = null; // {editor, points, read, names, groups, chosen}
  function draw() {
    all("svg", marks.editor).forEach((svg) => {
      const scale = SIDE / (svg.getBoundingClientRect().width || 400), group = marks.editor.dataset.group;
      if (svg.children.length !== 2 * marks.points.length + 1) {
        svg.replaceChildren();
        marks.points.forEach((_, k) => {
          const dot = document.createElementNS(NS, "circle"), hit = document.createElementNS(NS, "circle");
          dot.setAttribute("class", "dot " + marks.groups[k]);
          hit.setAttribute("class", "hit");
          hit.dataset.k = k;
          svg.append(dot, hit);
        });
        svg.append(document.createElementNS(NS, "g"));
      }
      marks.points.forEach(([x, y], k) => {
        const [dot, hit] = [svg.children[2 * k], svg.children[2 * k + 1]];
        const away = Math.hypot(x - marks.read[k][0], y - marks.read[k][1]) > 0.05 / marks.size;
        for (const one of [dot, hit]) one.setAttribute("cx", x * SIDE), one.setAttribute("cy", y * SIDE);
        dot.setAttribute("r", scale * (k === marks.chosen ? 6 : 3));
        hit.setAttribute("r", scale * 11);
        dot.classList.toggle("chosen", k === marks.chosen);
        dot.classList.toggle("moved", away);
        const shown = group === "all" || group === marks.groups[k];
        dot.style.display = hit.style.display = shown ? "" : "none";
      });
    });
    all("svg > g", marks.editor).forEach((group) => group.replaceChildren(...marks.depths.map((ends) => {
      const line = document.createElementNS(NS, "polyline"), [[a, b], [c, d]] = ends.map((p) => p.map((v) => v * SIDE));
      const size = 8 / Math.hypot(c - a, d - b), across = [(b - d) * size, (c - a) * size]; // a bar where the skin is to be
      line.setAttribute("points", [a, b, c, d, c - across[0], d - across[1], c + across[0], d + across[1]].join(" "));
      return line;
    })));
    const [x, y] = marks.points[marks.chosen];
    const size = marks.size;
    marks.editor.querySelector(".where").textContent =
      marks.chosen + " " + marks.names[marks.chosen] + ": x " + (x * size).toFixed(1) + ", y " + (y * size).toFixed(1);
    const list = marks.editor.querySelector("select.point");
    if (list) list.value = marks.chosen;
  }
  function move(dx, dy, start) {
    const how = marks.editor.dataset.how, [cx, cy] = start[marks.chosen];
    marks.points = start.map(([x, y], k) => {
      const far = Math.hypot(x - cx, y - cy);
      const share = k === marks.chosen ? 1 : how === "one" ? 0
        : how === "group" ? +(marks.groups[k] === marks.groups[marks.chosen]) : Math.exp((-far * far) / (2 * NEAR * NEAR));
      return [Math.min(1, Math.max(0, x + dx * share)), Math.min(1, Math.max(0, y + dy * share))];
    });
    draw();
  }
  const told = () => emit(marks.editor, "points", marks.points);
  document.addEventListener("pointerdown", (event) => {
    const svg = event.target.closest && event.target.closest(".editor svg");
    if (!svg || !marks) return;
    const box = svg.getBoundingClientRect(), at = [(event.clientX - box.left) / box.width, (event.clientY - box.top) / box.height];
    const visible = marks.points.map((_, k) => k).filter((k) => svg.children[2 * k].style.display !== "none");
    const far = (k) => Math.hypot(marks.points[k][0] - at[0], marks.points[k][1] - at[1]);
    const nearest = visible.reduce((a, b) => (far(a) <= far(b) ? a : b), visible[0]);
    if (nearest === undefined || far(nearest) * box.width > 22) return;
    marks.chosen = nearest;
    const start = marks.points, from = [event.clientX, event.clientY];
    svg.setPointerCapture(event.pointerId);
    svg.focus({ preventScroll: true });
    event.preventDefault();
    marks.held = true;
    draw();
    const moving = (now) => move((now.clientX - from[0]) / box.width, (now.clientY - from[1]) / box.height, start);
    const end = () => {
      svg.removeEventListener("pointermove", moving);
      marks.held = false;
      if (marks.points !== start) told();
    };
    svg.addEventListener("pointermove", moving);
    svg.addEventListener("pointerup", end, { once: true });
    svg.addEventListener("pointercancel", end, { once: true });
  });
  document.addEventListener("keydown", (event) => {
    if (!marks || !event.target.closest || !event.target.closest(".editor svg")) return;
    const by = (event.shiftKey ? 5 : 1) / marks.size;
    const ways = { ArrowLeft: [-by, 0], ArrowRight: [by, 0], ArrowUp: [0, -by], ArrowDown: [0, by] };
    const next = { PageDown: 1, PageUp: -1 }[event.key];
    if (ways[event.key]) move(...ways[event.key], marks.points);
    else if (next) {
      const group = marks.editor.dataset.group, num = marks.points.length;
      do marks.chosen = (marks.chosen + next + num) % num;
      while (group !== "all" && marks.groups[marks.chosen] !== group);
      draw();
    } else return;
    event.preventDefault();
    if (ways[event.key]) marks.keyed = true;
  });
  document.addEventListener("keyup", () => {
    if (!marks || !marks.keyed) return;
    marks.keyed = false;
    told();
  });
  document.addEventListener("change", (event) => {
    const editor = event.target.closest(".editor");
    if (!editor || !marks) return;
    if (event.target.matches("select.group")) {
      editor.dataset.group = event.target.value;
      const first = marks.groups.indexOf(event.target.value);
      if (first >= 0 && marks.groups[marks.chosen] !== event.target.value) marks.chosen = first;
    }
    if (event.target.matches("select.point")) marks.chosen = +event.target.value;
    if (event.target.matches("input[name=how]")) editor.dataset.how = event.target.value;
    draw();
  });
  addEventListener("resize", () => marks && draw());

  window.studio = {
    start() {
      show(location.hash.slice(1) || "start");
      tab(sessionStorage.getItem("tab") || "variants");
      all(".age").forEach(paint);
    },
    look: () => setTimeout(() => all(".light").forEach((one) => one.scrollIntoView({ block: "nearest" })), 50),
    marks(id, content) {
      const editor = document.getElementById(id);
      if (!editor || (marks && marks.held)) return;
      marks = { ...content, editor, chosen: marks && marks.chosen < content.points.length ? marks.chosen : content.chosen };
      draw();
    },
  };
})();
