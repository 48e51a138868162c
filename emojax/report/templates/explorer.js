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

  // What a unit's label and images say about classes
  const folded = data.concepts.map((name) => name.toLowerCase());
  const collator = new Intl.Collator();
  const places = data.concepts.map((_, i) => i).sort((a, b) => collator.compare(data.concepts[a], data.concepts[b]));
  const rank = [];
  places.forEach((concept, place) => { rank[concept] = place; });
  const speaksFor = (unit, emotion) => data.emotions ? data.emotions[cols.concept[unit]].includes(emotion) : cols.main !== undefined && cols.main[unit] === emotion;

  // A label that does not hold is none; the best concept stays in sight.
  const labelOf = (u) => cols.labelled && cols.labelled[u] === 0 ? `(${data.concepts[cols.concept[u]]})` : data.concepts[cols.concept[u]];

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
    // Half a pixel of every edge is left out, or its neighbour in the sheet would shine through.
    const zoom = data.thumbs.side / (data.thumbs.side - 1), edge = (zoom - 1) / 2;
    const shift = (number, count) => 100 * (number * zoom + edge) / (count * zoom - 1);
    box.style.backgroundSize = `${100 * side * zoom}% ${100 * high * zoom}%`;
    box.style.backgroundPosition = `${shift(at % side, side)}% ${shift(Math.floor(at / side), high)}%`;
    return box;
  };
  const looks = (unit) => {
    const box = make("div", { className: "row-thumbs" }), shown = Math.min(data.thumbs.inRows, data.thumbs.shown, more.width);
    for (let i = 0; i < shown; i++) box.append(thumb(more.top[unit * more.width + i]));
    return box;
  };

  // Columns
  const columns = [
    { name: "unit", width: "6.6rem", key: (u) => cols.layer[u] * 1e6 + cols.unit[u],
      cell: (u) => make("button", { type: "button", textContent: nameOf(u) }) },
    { name: "concept", width: "auto", key: (u) => rank[cols.concept[u]], text: (u) => labelOf(u) },
    { name: "similarity", width: "5.9rem", key: (u) => cols.similarity[u], text: (u) => number(cols.similarity[u]), down: true, number: true, extra: true },
  ];
  if (data.thumbs) columns.splice(1, 0, { name: "top images", width: "126px", cell: looks, look: true });
  if (cols.labelled) columns.push({ name: "trusted", width: "4.9rem", key: (u) => cols.trust[u], text: (u) => halves(cols.labelled[u]), extra: true });
  const add = (name, title, text, down, width = "5rem") => {
    if (cols[name]) columns.push({ name: title, width, key: (u) => cols[name][u], text, down, extra: true, number: name !== "main" });
  };
  add("margin", "margin", (u) => number(cols.margin[u]), true);
  if (cols.q) columns.push({ name: "q", width: "3.9rem", key: (u) => cols.q[u], text: (u) => small(cols.q[u]), extra: true, number: true });
  add("held", "held out", (u) => number(cols.held[u]), true);
  if (!cols.labelled) add("halves", "halves", (u) => halves(cols.halves[u]), true, "4.7rem");
  add("accuracy", "describes", (u) => number(cols.accuracy[u]), true, "5.7rem");
  add("main", "top class", (u) => cols.main[u] === null ? "–" : data.classes[cols.main[u]], false, "6rem");

  // What every unit answers to: correlations with texts, two letters each
  const STEPS = "ABCDEFGHIJKLMNOPQRSTUVWXYZabcdefghijklmnopqrstuvwxyz0123456789+/";
  const texts = data.profiles ? data.profiles.texts : [], wideness = texts.length;
  const answers = new Float32Array(total * wideness);
  if (data.profiles) {
    const step = new Uint8Array(128);
    [...STEPS].forEach((letter, i) => { step[letter.charCodeAt(0)] = i; });
    const letters = data.profiles.values;
    for (let i = 0; i < answers.length; i++)
      answers[i] = (64 * step[letters.charCodeAt(2 * i)] + step[letters.charCodeAt(2 * i + 1)]) / 4095 * 2 - 1;
  }
  let liked = -1;
  const likeness = { name: "answers", width: "5.4rem", key: (u) => answers[u * wideness + liked], down: true, number: true, like: true,
    text: (u) => liked < 0 ? "" : number(answers[u * wideness + liked]) };
  if (data.profiles) columns.splice(columns.findIndex((column) => column.name === "similarity") + 1, 0, likeness);

  // The order and the choice of rows
  // The most trusted labels come first, without any trust the largest similarities.
  const byTrust = { key: (u) => cols.trust[u] };
  let order = [...Array(total).keys()], sorted = { column: columns.find((c) => c.name === (cols.trust ? "trusted" : "similarity")) ?? byTrust, down: !cols.trust };
  const sortAll = () => {
    const keys = order.map(() => null), key = sorted.column.key, sign = sorted.down ? -1 : 1;
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
    const spoken = terms.map((term) => data.classes.flatMap((name, i) => name.toLowerCase().includes(term) ? [i] : []));
    const weighed = terms.map((term) => names.map((name) => name.includes(term)));
    const layers = terms.map((term) => data.layers.map((name) => name.toLowerCase() === term));
    rows = order.filter((u) =>
      (layer === "" || cols.layer[u] === +layer) && (emotion === "" || speaksFor(u, +emotion)) && sure(u) &&
      terms.every((term, i) => concepts[i][cols.concept[u]] || spoken[i].some((cls) => speaksFor(u, cls)) || explains(u, weighed[i]) || layers[i][cols.layer[u]] || term === String(cols.unit[u])));
    $("count").textContent = `${rows.length.toLocaleString("en")} of ${total.toLocaleString("en")} units`;
    grid.setAttribute("aria-rowcount", rows.length + 1);
    for (const row of drawn.values()) row.remove();
    drawn.clear();
    view.scrollTop = 0;
    draw();
    drawMap();
  };

  // Rows in view
  const view = $("units"), grid = view.querySelector("table"), body = grid.tBodies[0], drawn = new Map();
  const gap = () => make("tr", { className: "gap", ariaHidden: "true" }, make("td"));
  const above = gap(), below = gap();
  body.append(above, below);
  const none = make("tr", { className: "none" }, make("td", { colSpan: 3, textContent: "No unit fits. Clear the search or a filter." }));
  const classOf = (column) => [column.like && "like", column.extra && "extra", column.number && "num", column.look && "looks"].filter(Boolean).join(" ");
  const rowOf = (at) => {
    const unit = rows[at], row = make("tr");
    row.setAttribute("aria-rowindex", at + 2);
    for (const column of columns) {
      const cell = make("td", { className: classOf(column) });
      if (column.cell) cell.append(column.cell(unit));
      else { cell.textContent = column.text(unit); cell.title = cell.textContent; }
      row.append(cell);
    }
    row.addEventListener("click", () => go(unit));
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
  const heads = columns.map((column) => {
    const head = make("th", { scope: "col", className: classOf(column) },
      column.key ? make("button", { type: "button", textContent: column.name }) : make("span", { textContent: column.name }));
    head.style.width = column.width;
    if (column.key) head.firstChild.addEventListener("click", () => {
      sorted = { column, down: sorted.column === column ? !sorted.down : Boolean(column.down) };
      nameSort();
      sortAll();
      choose();
    });
    return head;
  });
  const nameSort = () => heads.forEach((head, i) => columns[i].key &&
    head.setAttribute("aria-sort", columns[i] === sorted.column ? (sorted.down ? "descending" : "ascending") : "none"));
  grid.tHead.rows[0].append(...heads);
  nameSort();

  // Filters
  const options = (select, names, all) => select && select.append(make("option", { value: "", textContent: all }),
    ...names.map((name, i) => make("option", { value: i, textContent: name })));
  options($("layer"), data.layers, "all layers");
  options($("emotion"), data.classes, "any class");
  if (data.profiles) {
    $("texts").append(...texts.map((text) => make("option", { value: text })));
    $("like").placeholder = `e.g. ${texts[0]}`;
    const usual = sorted;
    const rankBy = () => {
      const wanted = $("like").value.trim().toLowerCase(), before = liked;
      liked = texts.findIndex((text) => text.toLowerCase() === wanted);
      if (liked < 0 && before < 0) return;
      grid.classList.toggle("liking", liked >= 0);
      sorted = liked >= 0 ? { column: likeness, down: true } : usual;
      nameSort();
      sortAll();
      choose();
    };
    $("like").addEventListener("input", rankBy);
  }
  for (const id of ["layer", "emotion", "sure"]) if ($(id)) $(id).addEventListener("change", choose);
  $("search").addEventListener("input", choose);

  // The map: a dot per unit, those that are chosen in colour
  const map = $("map"), places2 = data.profiles ? data.profiles.places : [];
  const hues = (count, i) => count < 2 ? 205 : 205 + 300 * i / (count - 1);
  const groups = () => $("map-colour").value === "class" ? [data.classes, (u) => cols.main[u]] : [data.layers, (u) => cols.layer[u]];
  const spot = (u, box) => [12 + (box.width - 24) * (places2[2 * u] + 1) / 2, 12 + (box.height - 24) * (1 - places2[2 * u + 1]) / 2];
  const drawMap = () => {
    if (!map || !$("map-part").open) return;
    const box = map.getBoundingClientRect(), scale = devicePixelRatio || 1, pen = map.getContext("2d"), dark = darkNow();
    map.width = box.width * scale;
    map.height = box.height * scale;
    pen.scale(scale, scale);
    const [names, of] = groups(), colours = names.map((_, i) => `hsl(${hues(names.length, i)} 70% ${dark ? 62 : 42}%)`);
    const size = total > 3000 ? 2 : 3.5, chosen = new Set(rows), dot = (u) => {
      const [x, y] = spot(u, box);
      pen.beginPath();
      pen.arc(x, y, size, 0, 7);
      pen.fill();
    };
    pen.fillStyle = dark ? "#454f5c" : "#c9ced6";
    for (let u = 0; u < total; u++) if (!chosen.has(u)) dot(u);
    for (const u of rows) {
      const group = of(u);
      pen.fillStyle = group === null || group === undefined ? (dark ? "#a8b3c1" : "#55606e") : colours[group];
      dot(u);
    }
    $("map-legend").replaceChildren(...names.flatMap((name, i) => {
      const mark = make("i");
      mark.style.background = colours[i];
      return [mark, name];
    }));
  };
  const nearest = (event) => {
    const box = map.getBoundingClientRect(), x = event.clientX - box.left, y = event.clientY - box.top;
    let best, least = 12 ** 2;
    for (const u of rows) {
      const [a, b] = spot(u, box), apart = (a - x) ** 2 + (b - y) ** 2;
      if (apart < least) { least = apart; best = u; }
    }
    return best;
  };
  if (map) {
    if (cols.main) $("map-colour").append(make("option", { value: "class", textContent: "class of most top images" }));
    $("map-part").addEventListener("toggle", drawMap);
    $("map-colour").addEventListener("change", drawMap);
    $("theme").addEventListener("click", drawMap);
    addEventListener("resize", drawMap);
    map.addEventListener("click", (event) => { const u = nearest(event); if (u !== undefined) go(u); });
    map.addEventListener("mousemove", (event) => {
      const u = nearest(event);
      $("map-name").textContent = u === undefined ? "\u00a0" : `${nameOf(u)}: ${labelOf(u)}`;
    });
  }

  // Units that answer alike: the largest cosines of profiles, less what all units have in common
  const means = texts.map((_, t) => { let sum = 0; for (let u = 0; u < total; u++) sum += answers[u * wideness + t]; return sum / total; });
  const alike = (unit, count = 6) => {
    const cosine = (a, b) => {
      let both = 0, own = 0, other = 0;
      for (let t = 0; t < wideness; t++) {
        const x = answers[a * wideness + t] - means[t], y = answers[b * wideness + t] - means[t];
        both += x * y; own += x * x; other += y * y;
      }
      return own && other ? both / Math.sqrt(own * other) : 0;
    };
    const all = [];
    for (let u = 0; u < total; u++) if (u !== unit) all.push([u, cosine(unit, u)]);
    return all.sort((a, b) => b[1] - a[1]).slice(0, count);
  };

  // One unit
  const dialog = $("unit");
  let opened = -1;
  const largest = (values) => values.reduce((most, x) => Math.max(most, Math.abs(x ?? 0)), 1e-9);
  // One scale for all units, so that bars can be compared between them
  const scales = {
    scores: more ? largest(more.scores) : 1,
    outgoing: more && more.outgoing ? largest(more.outgoing.weights) : 1,
    weights: data.explanations ? Object.values(data.explanations.units).reduce((most, one) => Math.max(most, largest(one.weights)), 1e-9) : 1,
  };
  const scaled = (most) => make("p", { className: "small soft", textContent: `A full bar is ${number(most)} for every unit.` });
  const bars = (items, most) => {
    const box = make("div", { className: "bars" });
    const signed = items.some(([, value]) => value < 0);
    for (const [name, value, text] of items) {
      const fill = make("i", { className: value < 0 ? "less" : "" }), share = 100 * Math.abs(value) / most / (signed ? 2 : 1);
      fill.style.width = `${share}%`;
      fill.style.left = signed ? `${value < 0 ? 50 - share : 50}%` : "0";
      box.append(make("span", { textContent: name }), make("span", { className: "track", ariaHidden: "true" }, fill),
        make("span", { className: "num", textContent: text }));
    }
    return box;
  };
  // Activation maps, of some units on their first top images: dim where the unit is least active, orange where it is most
  const maps = data.maps, mapAt = new Map(), cellsOf = (unit) => maps.sides[cols.layer[unit]];
  let mapValues, mapsShown = true;
  if (maps) maps.units.reduce((at, unit) => { mapAt.set(unit, at); return at + maps.images * cellsOf(unit)[0] * cellsOf(unit)[1]; }, 0);
  const mapOf = (unit, i) => {
    mapValues ??= Uint8Array.from(atob(maps.values), (letter) => letter.charCodeAt(0));
    const [h, w] = cellsOf(unit), [top, left, high, wide] = maps.part, start = mapAt.get(unit) + i * h * w;
    const canvas = make("canvas", { className: "map", width: w, height: h, ariaHidden: "true" }), pen = canvas.getContext("2d");
    const image = pen.createImageData(w, h);
    for (let cell = 0; cell < h * w; cell++) image.data.set([255, 95, 0, Math.round(0.65 * mapValues[start + cell])], 4 * cell);
    pen.putImageData(image, 0, 0);
    Object.assign(canvas.style, { top: `${100 * top}%`, left: `${100 * left}%`, height: `${100 * high}%`, width: `${100 * wide}%` });
    return canvas;
  };
  const mapNote = (unit) => {
    const [h, w] = cellsOf(unit);
    if (!h || !data.thumbs) return [];
    if (!mapAt.has(unit)) return [`Activation maps are kept of the ${maps.units.length.toLocaleString("en")} units with places whose labels are trusted most.`];
    const shown = Math.min(maps.images, data.thumbs.shown);
    return [`Orange: where in its first ${shown} images the unit is most active, in ${h} × ${w} cells on one scale for all ${shown}.` +
      (maps.ofPatches ? " Maps are of patches, the numbers of the first token." : "")];
  };
  const mapSwitch = (unit) => {
    const words = maps ? mapNote(unit).map((text) => make("span", { textContent: text })) : [];
    if (!words.length) return [];
    if (!mapAt.has(unit)) return [make("p", { className: "small soft" }, ...words)];
    const box = make("input", { type: "checkbox", id: "maps", checked: mapsShown });
    box.addEventListener("change", () => { mapsShown = box.checked; $("unit-inside").classList.toggle("unmapped", !mapsShown); });
    return [make("p", { className: "small soft" }, make("label", {}, box, " Activation maps. "), ...words)];
  };
  const part = (title, className, ...content) => make("section", { className }, make("h3", { textContent: title }), ...content);
  const sheetOf = (images, values, twins = [], mapped = -1) => {
    const list = make("ol", { className: data.thumbs ? "sheet" : "sheet bare" });
    images.forEach((image, i) => {
      const cls = data.images.cls[image], id = data.images.id[image], item = make("li", { title: id });
      const words = [`${i + 1}.`, cls < 0 ? "" : data.classes[cls], values.length ? number(values[i], 3) : ""].filter(Boolean).join(" ");
      if (data.thumbs) {
        const box = thumb(image);
        box.role = "img";
        box.ariaLabel = id;
        if (mapAt.has(mapped) && i < maps.images) box.append(mapOf(mapped, i));
        item.append(box);
      }
      item.append(make("span", { textContent: words }), make("span", { className: "file", textContent: data.thumbs ? id.split("/").pop() : id }));
      if (twins[i] >= 0) item.append(make("span", { className: "twin", textContent: `same as ${twins[i] + 1}` }));
      list.append(item);
    });
    return list;
  };
  const rowOfUnit = (values, wide, unit, shown = wide) => values.slice(unit * wide, unit * wide + Math.min(shown, wide));
  const topOf = (unit) => {
    const shown = data.thumbs ? data.thumbs.shown : more.width, take = (values) => rowOfUnit(values, more.width, unit, shown);
    return sheetOf(take(more.top), take(more.values), take(more.same), unit);
  };
  const bottomOf = (unit) => {
    const shown = data.thumbs ? Math.floor(data.thumbs.shown / 2) : more.lowest, take = (values) => rowOfUnit(values, more.lowest, unit, shown);
    return sheetOf(take(more.bottom), take(more.bottomValues));
  };
  // Simulated against real activations of held-out images: letters are steps of 64 from least to largest
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
    const content = [items.length ? bars(items, scales.weights) : make("p", { textContent: "No concept explains it." }), scaled(scales.weights), make("p", { className: "small soft", textContent: words })];
    if (entry.real) content.push(scatter(entry), make("p", { className: "small soft", textContent: "Up: real activation. Right: simulated. Held-out images." }));
    return part("Explanation", "", ...content);
  };
  const show = (unit) => {
    opened = unit;
    const at = rows.indexOf(unit), inside = make("div", { className: "inside" }), fact = [];
    const say = (name, text) => fact.push(make("tr", {}, make("th", { scope: "row", textContent: name }), make("td", { textContent: text })));
    $("unit-name").textContent = `${nameOf(unit)}: ${labelOf(unit)}`;
    say("label", cols.labelled && cols.labelled[unit] === 0 ? `no label: ${data.concepts[cols.concept[unit]]} does not hold` : data.concepts[cols.concept[unit]]);
    if (data.truth) {
      const most = data.truth.names[data.truth.most[unit]], right = most === data.concepts[cols.concept[unit]];
      say("truth", `responds most to ${most} (AUROC ${number(data.truth.auroc[unit])}): the label is ${right ? "right" : "another"}`);
    }
    say("maximum similarity", number(cols.similarity[unit], 3));
    if (cols.margin) say("margin over the runner-up", number(cols.margin[unit], 3));
    if (cols.p) say("p-value, q-value", `${small(cols.p[unit])}, ${small(cols.q[unit])}`);
    if (cols.held) say("correlation on the half that did not choose", `${number(cols.held[unit])} (${number(cols.low[unit])} to ${number(cols.high[unit])})`);
    if (cols.halves) say("same label on either half", halves(cols.halves[unit]));
    if (cols.accuracy) say("describes its top 10 images", `${number(cols.accuracy[unit])} (chance ${number(cols.chance[unit])})`);
    if (more) inside.append(part(more.values.length ? "Top images, with the unit's activation" : "Top images", "wide", ...mapSwitch(unit), topOf(unit)));
    if (more && more.lowest) inside.append(part("Images that activate it least", "wide", bottomOf(unit)));
    inside.append(part("Label", "", make("table", {}, make("tbody", {}, ...fact))));
    if (unit in explained) inside.append(explanation(explained[unit]));
    if (more) {
      const n = more.named, items = [];
      for (let i = 0; i < n; i++) items.push([data.concepts[more.best[unit * n + i]], more.scores[unit * n + i], number(more.scores[unit * n + i])]);
      inside.append(part("Best concepts", "", bars(items, scales.scores), scaled(scales.scores)));
      const c = data.classes.length, mix = more.mix.slice(unit * c, unit * c + c), all = mix.reduce((a, b) => a + b, 0);
      if (all) inside.append(part(`Classes of its top ${all} images`, "", bars(mix.map((x, i) => [data.classes[i], x, `${(100 * x / all).toFixed(1)}%`]), all)));
      if (more.outgoing && cols.layer[unit] === more.outgoing.layer) {
        const w = more.outgoing.weights.slice(cols.unit[unit] * c, cols.unit[unit] * c + c);
        inside.append(part("Outgoing weights to the classes", "", bars(w.map((x, i) => [data.classes[i], x, number(x, 3)]), scales.outgoing), scaled(scales.outgoing)));
      }
    }
    if (wideness > 2) {
      const list = make("ul", { className: "links" });
      for (const [u, cosine] of alike(unit)) {
        const link = make("button", { type: "button", textContent: `${nameOf(u)}: ${labelOf(u)}` });
        link.addEventListener("click", () => go(u));
        list.append(make("li", {}, link, make("span", { className: "soft", textContent: ` ${number(cosine)}` })));
      }
      inside.append(part("Units that answer alike", "", list));
    }
    $("unit-inside").replaceChildren(inside);
    $("unit-inside").classList.toggle("unmapped", !mapsShown);
    $("earlier").disabled = at <= 0;
    $("later").disabled = at < 0 || at === rows.length - 1;
    if (!dialog.open) dialog.showModal();
    dialog.scrollTop = 0;
  };

  // Every unit has an address, which the browser's back and forward follow
  const addressOf = (unit) => `#unit/${encodeURIComponent(data.layers[cols.layer[unit]])}/${cols.unit[unit]}`;
  const byAddress = new Map(order.map((unit) => [addressOf(unit), unit]));
  const follow = () => {
    const unit = byAddress.get(location.hash);
    if (unit !== undefined) show(unit);
    else if (dialog.open) dialog.close();
  };
  // How many units were opened since the list: what closing goes back over.
  const depth = () => history.state && history.state.depth || 0;
  const go = (unit) => {
    history.pushState({ depth: dialog.open && !depth() ? 0 : depth() + 1 }, "", addressOf(unit));
    show(unit);
  };
  const step = (by) => {
    const unit = rows[rows.indexOf(opened) + by];
    if (unit === undefined || !rows.includes(opened)) return;
    history.replaceState(history.state, "", addressOf(unit));
    show(unit);
  };
  addEventListener("popstate", follow);
  $("earlier").addEventListener("click", () => step(-1));
  $("later").addEventListener("click", () => step(1));
  $("close").addEventListener("click", () => dialog.close());
  dialog.addEventListener("keydown", (event) => {
    if (event.key === "ArrowLeft") step(-1);
    if (event.key === "ArrowRight") step(1);
  });
  dialog.addEventListener("click", (event) => { if (event.target === dialog) dialog.close(); });
  dialog.addEventListener("close", () => {
    if (byAddress.has(location.hash)) {
      if (depth()) history.go(-depth());
      else history.replaceState(null, "", "#explorer");
    }
    focusRow(rows.indexOf(opened));
  });

  sortAll();
  choose();
  follow();
  document.documentElement.dataset.ready = "yes";
})();
