// The explorer of units. Data comes as columns; only the rows in view exist. All text goes in as text, never as markup.
(() => {
  const source = document.getElementById("data");
  if (!source) return;
  const data = JSON.parse(source.textContent), cols = data.units, total = cols.unit.length, more = data.details, ROW = 41;
  const $ = (id) => document.getElementById(id);
  const make = (tag, properties = {}, ...children) => {
    const node = Object.assign(document.createElement(tag), properties);
    node.append(...children);
    return node;
  };
  const number = (x, digits = 2) => x === null || x === undefined ? "–" : x.toFixed(digits).replace("-", "−");
  const small = (x) => x === null || x === undefined ? "–" : x < 0.001 ? "<0.001" : x.toFixed(3);
  const halves = (x) => x === null || x === undefined ? "–" : x ? "yes" : "no";
  const nameOf = (unit) => `${data.layers[cols.layer[unit]]} ${cols.unit[unit]}`;

  // What a unit's label and images say about emotions
  const folded = data.concepts.map((name) => name.toLowerCase());
  const collator = new Intl.Collator();
  const places = data.concepts.map((_, i) => i).sort((a, b) => collator.compare(data.concepts[a], data.concepts[b]));
  const rank = [];
  places.forEach((concept, place) => { rank[concept] = place; });
  const speaksFor = (unit, emotion) => data.emotions ? data.emotions[cols.concept[unit]].includes(emotion) : cols.main[unit] === emotion;

  // A label that does not hold is none; the best concept stays in sight.
  const labelOf = (u) => cols.labelled && cols.labelled[u] === 0 ? `(${data.concepts[cols.concept[u]]})` : data.concepts[cols.concept[u]];

  // Columns
  const columns = [
    { name: "unit", width: "7.5rem", key: (u) => cols.layer[u] * 1e6 + cols.unit[u] },
    { name: "concept", width: "auto", key: (u) => rank[cols.concept[u]], text: (u) => labelOf(u) },
    { name: "similarity", width: "6.6rem", key: (u) => cols.similarity[u], text: (u) => number(cols.similarity[u]), down: true },
  ];
  const add = (name, title, text, down, width = "5.6rem") => {
    if (cols[name]) columns.push({ name: title, width, key: (u) => cols[name][u], text, down, extra: true });
  };
  add("margin", "margin", (u) => number(cols.margin[u]), true);
  if (cols.q) columns.push({ name: "q", width: "4.6rem", key: (u) => cols.q[u], text: (u) => small(cols.q[u]), extra: true });
  add("held", "held out", (u) => number(cols.held[u]), true);
  add("halves", "halves", (u) => halves(cols.halves[u]), true, "5.2rem");
  add("accuracy", "describes", (u) => number(cols.accuracy[u]), true, "6.2rem");
  add("chance", "chance", (u) => number(cols.chance[u]), true);
  add("main", "top class", (u) => cols.main[u] === null ? "–" : data.classes[cols.main[u]], false, "6.4rem");

  // The order and the choice of rows
  let order = [...Array(total).keys()], sorted = { column: 0, down: false };
  const sortAll = () => {
    const keys = order.map(() => null), key = columns[sorted.column].key, sign = sorted.down ? -1 : 1;
    for (let u = 0; u < total; u++) keys[u] = key(u);
    order = [...Array(total).keys()].sort((a, b) => {
      if (keys[a] === null || keys[b] === null) return (keys[a] === null) - (keys[b] === null) || a - b;
      return sign * (keys[a] - keys[b]) || a - b;
    });
  };
  let rows = order;
  const significance = { any: () => true, q05: (u) => cols.q[u] <= 0.05, q01: (u) => cols.q[u] <= 0.01,
    not: (u) => cols.q[u] > 0.05, halves: (u) => cols.halves[u] === 1,
    labelled: (u) => cols.labelled[u] === 1, none: (u) => cols.labelled[u] === 0 };
  const explained = data.explanations ? data.explanations.units : {};
  const names = data.explanations ? data.explanations.concepts.map((name) => name.toLowerCase()) : [];
  const explains = (unit, hits) => unit in explained && explained[unit].concepts.some((concept) => hits[concept]);
  const choose = () => {
    const terms = $("search").value.toLowerCase().split(/[\s/:#]+/).filter(Boolean);
    const layer = $("layer").value, emotion = $("emotion") ? $("emotion").value : "", sure = significance[$("sure") ? $("sure").value : "any"];
    const concepts = terms.map((term) => folded.map((name) => name.includes(term)));
    const weighed = terms.map((term) => names.map((name) => name.includes(term)));
    const layers = terms.map((term) => data.layers.map((name) => name.toLowerCase() === term));
    rows = order.filter((u) =>
      (layer === "" || cols.layer[u] === +layer) && (emotion === "" || speaksFor(u, +emotion)) && sure(u) &&
      terms.every((term, i) => concepts[i][cols.concept[u]] || explains(u, weighed[i]) || layers[i][cols.layer[u]] || term === String(cols.unit[u])));
    $("count").textContent = `${rows.length.toLocaleString("en")} of ${total.toLocaleString("en")} units`;
    grid.setAttribute("aria-rowcount", rows.length + 1);
    for (const row of drawn.values()) row.remove();
    drawn.clear();
    view.scrollTop = 0;
    draw();
  };

  // Rows in view
  const view = $("units"), grid = view.querySelector("table"), body = grid.tBodies[0], drawn = new Map();
  const gap = () => make("tr", { className: "gap", ariaHidden: "true" }, make("td"));
  const above = gap(), below = gap();
  body.append(above, below);
  const none = make("tr", { className: "none" }, make("td", { colSpan: 3, textContent: "No unit fits. Clear the search or a filter." }));
  const rowOf = (at) => {
    const unit = rows[at], row = make("tr");
    row.setAttribute("aria-rowindex", at + 2);
    columns.forEach((column, i) => {
      const cell = make("td", { className: (column.extra ? "extra" : "") + (i > 1 && column.name !== "top class" ? " num" : "") });
      if (i) { cell.textContent = column.text(unit); cell.title = cell.textContent; }
      else cell.append(make("button", { type: "button", textContent: nameOf(unit) }));
      row.append(cell);
    });
    row.addEventListener("click", () => open(at));
    return row;
  };
  const draw = () => {
    const first = Math.max(0, Math.floor(view.scrollTop / ROW) - 6);
    const last = Math.min(rows.length, Math.ceil((view.scrollTop + view.clientHeight) / ROW) + 6);
    for (const [at, row] of drawn) if (at < first || at >= last) { row.remove(); drawn.delete(at); }
    let before = above;
    for (let at = first; at < last; at++) {
      if (!drawn.has(at)) drawn.set(at, rowOf(at));
      if (before.nextSibling !== drawn.get(at)) before.after(drawn.get(at));
      before = drawn.get(at);
    }
    above.firstChild.style.height = `${first * ROW}px`;
    below.firstChild.style.height = `${(rows.length - last) * ROW}px`;
    rows.length ? none.remove() : above.after(none);
  };
  view.addEventListener("scroll", () => requestAnimationFrame(draw), { passive: true });
  addEventListener("resize", draw);
  const focusRow = (at) => {
    if (at < 0 || at >= rows.length) return;
    const top = at * ROW, head = grid.tHead.offsetHeight;
    if (top < view.scrollTop) view.scrollTop = top;
    if (top + ROW + head > view.scrollTop + view.clientHeight) view.scrollTop = top + ROW + head - view.clientHeight;
    draw();
    drawn.get(at).querySelector("button").focus({ preventScroll: true });
  };
  body.addEventListener("keydown", (event) => {
    const step = { ArrowDown: 1, ArrowUp: -1, PageDown: 10, PageUp: -10, Home: -rows.length, End: rows.length }[event.key];
    const row = event.target.closest("tr");
    if (!step || !row) return;
    event.preventDefault();
    focusRow(Math.min(rows.length - 1, Math.max(0, +row.getAttribute("aria-rowindex") - 2 + step)));
  });

  // Heads that sort
  const heads = columns.map((column, i) => {
    const head = make("th", { scope: "col", className: (column.extra ? "extra" : "") + (i > 1 && column.name !== "top class" ? " num" : "") },
      make("button", { type: "button", textContent: column.name }));
    head.style.width = column.width;
    head.firstChild.addEventListener("click", () => {
      sorted = { column: i, down: sorted.column === i ? !sorted.down : Boolean(column.down) };
      nameSort();
      sortAll();
      choose();
    });
    return head;
  });
  const nameSort = () => heads.forEach((head, i) =>
    head.setAttribute("aria-sort", i === sorted.column ? (sorted.down ? "descending" : "ascending") : "none"));
  grid.tHead.rows[0].append(...heads);
  nameSort();

  // Filters
  const options = (select, names, all) => select && select.append(make("option", { value: "", textContent: all }),
    ...names.map((name, i) => make("option", { value: i, textContent: name })));
  options($("layer"), data.layers, "all layers");
  options($("emotion"), data.classes, "any emotion");
  for (const id of ["layer", "emotion", "sure"]) if ($(id)) $(id).addEventListener("change", choose);
  $("search").addEventListener("input", choose);

  // Thumbnails: every sheet becomes one picture, when first needed
  const sheets = [...document.querySelectorAll("script.pack")], urls = [];
  const place = new Map(data.thumbs ? data.thumbs.images.map((image, n) => [image, n]) : []);
  const thumb = (image) => {
    const n = place.get(image), side = data.thumbs.columns, sheet = Math.floor(n / side ** 2), at = n % side ** 2;
    if (!urls[sheet]) {
      const text = atob(sheets[sheet].textContent), bytes = new Uint8Array(text.length);
      for (let i = 0; i < bytes.length; i++) bytes[i] = text.charCodeAt(i);
      urls[sheet] = URL.createObjectURL(new Blob([bytes], { type: "image/webp" }));
    }
    const high = Math.ceil(Math.min(side ** 2, place.size - sheet * side ** 2) / side);
    const box = make("div", { className: "thumb" });
    box.style.backgroundImage = `url(${urls[sheet]})`;
    box.style.backgroundSize = `${side * 100}% ${high * 100}%`;
    box.style.backgroundPosition = `${100 * (at % side) / (side - 1)}% ${high > 1 ? 100 * Math.floor(at / side) / (high - 1) : 0}%`;
    return box;
  };

  // One unit
  const dialog = $("unit");
  let opened = 0;
  const bars = (items) => {
    const box = make("div", { className: "bars" });
    const most = Math.max(...items.map(([, value]) => Math.abs(value)), 1e-9), signed = items.some(([, value]) => value < 0);
    for (const [name, value, text] of items) {
      const fill = make("i", { className: value < 0 ? "less" : "" }), share = 100 * Math.abs(value) / most / (signed ? 2 : 1);
      fill.style.width = `${share}%`;
      fill.style.left = signed ? `${value < 0 ? 50 - share : 50}%` : "0";
      box.append(make("span", { textContent: name }), make("span", { className: "track", ariaHidden: "true" }, fill),
        make("span", { className: "num", textContent: text }));
    }
    return box;
  };
  const part = (title, className, ...content) => make("section", { className }, make("h3", { textContent: title }), ...content);
  const imagesOf = (unit) => {
    const wide = more.width, shown = data.thumbs ? data.thumbs.shown : wide, list = make("ol", { className: data.thumbs ? "sheet" : "sheet bare" });
    for (let i = 0; i < Math.min(shown, wide); i++) {
      const image = more.top[unit * wide + i], twin = more.same[unit * wide + i], cls = data.images.cls[image];
      const words = `${i + 1}. ${cls < 0 ? "" : data.classes[cls] + " "}`, id = data.images.id[image], item = make("li", { title: id });
      if (data.thumbs) {
        const box = thumb(image);
        box.role = "img";
        box.ariaLabel = id;
        item.append(box, make("span", { textContent: words }));
      } else item.append(make("span", { textContent: words }), make("br"), make("span", { className: "soft", textContent: id }));
      if (twin >= 0) item.append(make("span", { className: "twin", textContent: `same as ${twin + 1}` }));
      list.append(item);
    }
    return list;
  };
  // Simulated against real activations of held-out images: letters are steps of 64 from least to largest
  const STEPS = "ABCDEFGHIJKLMNOPQRSTUVWXYZabcdefghijklmnopqrstuvwxyz0123456789+/";
  const svg = (tag, attributes, ...children) => {
    const node = document.createElementNS("http://www.w3.org/2000/svg", tag);
    for (const [name, value] of Object.entries(attributes)) node.setAttribute(name, value);
    node.append(...children);
    return node;
  };
  const scatter = (entry) => {
    const dots = [...entry.real].map((letter, i) => svg("circle", { class: "dot", r: 1.2,
      cx: 6 + 1.4 * STEPS.indexOf(entry.simulated[i]), cy: 94 - 1.4 * STEPS.indexOf(letter) }));
    const title = svg("title", {});
    title.textContent = `real against simulated activation of ${dots.length} held-out images`;
    return svg("svg", { class: "scatter", viewBox: "0 0 100 100", role: "img" }, title,
      svg("path", { class: "axes", d: "M4 4V96H96" }), ...dots);
  };
  const explanation = (entry) => {
    const items = entry.concepts.map((concept, i) => [data.explanations.concepts[concept], entry.weights[i], number(entry.weights[i])]);
    const words = `Held-out correlation ${number(entry.correlation)}, ${number(entry.label)} with the best single concept; bias ${number(entry.bias)}.`;
    const content = [items.length ? bars(items) : make("p", { textContent: "No concept explains it." }), make("p", { className: "small soft", textContent: words })];
    if (entry.real) content.push(scatter(entry), make("p", { className: "small soft", textContent: "Up: real activation. Right: simulated. Held-out images." }));
    return part("Explanation", "", ...content);
  };
  const open = (at) => {
    opened = at;
    const unit = rows[at], inside = make("div", { className: "inside" }), fact = [];
    const say = (name, text) => fact.push(make("tr", {}, make("th", { scope: "row", textContent: name }), make("td", { textContent: text })));
    $("unit-name").textContent = nameOf(unit);
    say("label", cols.labelled && cols.labelled[unit] === 0 ? `no label: ${data.concepts[cols.concept[unit]]} does not hold` : data.concepts[cols.concept[unit]]);
    say("maximum similarity", number(cols.similarity[unit], 3));
    if (cols.margin) say("margin over the runner-up", number(cols.margin[unit], 3));
    if (cols.p) say("p-value, q-value", `${small(cols.p[unit])}, ${small(cols.q[unit])}`);
    if (cols.held) say("correlation on the half that did not choose", `${number(cols.held[unit])} (${number(cols.low[unit])} to ${number(cols.high[unit])})`);
    if (cols.halves) say("same label on either half", halves(cols.halves[unit]));
    if (cols.accuracy) say("describes its top 10 images", `${number(cols.accuracy[unit])} (chance ${number(cols.chance[unit])})`);
    if (more) inside.append(part("Top images", "wide", imagesOf(unit)));
    inside.append(part("Label", "", make("table", {}, make("tbody", {}, ...fact))));
    if (unit in explained) inside.append(explanation(explained[unit]));
    if (more) {
      const n = more.named, items = [];
      for (let i = 0; i < n; i++) items.push([data.concepts[more.best[unit * n + i]], more.scores[unit * n + i], number(more.scores[unit * n + i])]);
      inside.append(part("Best concepts", "", bars(items)));
      const c = data.classes.length, mix = more.mix.slice(unit * c, unit * c + c), all = mix.reduce((a, b) => a + b, 0);
      if (all) inside.append(part(`Classes of its top ${all} images`, "", bars(mix.map((x, i) => [data.classes[i], x, `${(100 * x / all).toFixed(0)} %`]))));
      if (more.outgoing && cols.layer[unit] === more.outgoing.layer) {
        const w = more.outgoing.weights.slice(cols.unit[unit] * c, cols.unit[unit] * c + c);
        inside.append(part("Outgoing weights to the classes", "", bars(w.map((x, i) => [data.classes[i], x, number(x, 3)]))));
      }
    }
    $("unit-inside").replaceChildren(inside);
    $("earlier").disabled = at === 0;
    $("later").disabled = at === rows.length - 1;
    if (!dialog.open) dialog.showModal();
    dialog.scrollTop = 0;
  };
  const step = (by) => { if (rows[opened + by] !== undefined) open(opened + by); };
  $("earlier").addEventListener("click", () => step(-1));
  $("later").addEventListener("click", () => step(1));
  $("close").addEventListener("click", () => dialog.close());
  dialog.addEventListener("keydown", (event) => {
    if (event.key === "ArrowLeft") step(-1);
    if (event.key === "ArrowRight") step(1);
  });
  dialog.addEventListener("click", (event) => { if (event.target === dialog) dialog.close(); });
  dialog.addEventListener("close", () => focusRow(opened));

  choose();
  document.documentElement.dataset.ready = "yes";
})();
