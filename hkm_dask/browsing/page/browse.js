// The page. The current view is in the address after #, so that the Back button works.

import { h, count, plural, percent, weightText, title, bars, largestShare, legend, clusterCard, sampleCard, fillDetail, grid, pager } from "./parts.js";

const at = (id) => document.getElementById(id);
const [main, path, problem, status, aside, detail, what, query, file] =
  ["main", "path", "problem", "status", "marks", "detail", "what", "query", "file"].map(at);
let tree, marks, facts = null, visit = 0;

// -- requests ---------------------------------------------------------------------------------------------------------

async function ask(question, given = {}) {
  const answer = await fetch(`api/${question}?${new URLSearchParams(given)}`);
  return unpack(answer);
}

async function change(name, given = {}) {
  const answer = await fetch(`api/${name}`, { method: "POST", body: JSON.stringify(given) });
  return unpack(answer);
}

async function unpack(answer) {
  const content = await answer.json();
  if (!answer.ok) throw new Error(content.error);
  return content;
}

function tell(text) {
  problem.textContent = text;
  problem.hidden = !text;
}

const fail = (error) => tell(error instanceof TypeError ? "hkm browse is not responding. Is it still running?" : error.message);
const announce = (text) => { status.textContent = text; };
const drawSize = () => marks.draw?.size ?? 0;

// -- navigation -------------------------------------------------------------------------------------------------------

function place() {
  const [name, given] = decodeURIComponent(location.hash.slice(1)).split(/\?(.*)/s);
  return { name, given: Object.fromEntries(new URLSearchParams(given ?? "")) };
}

function go(name, given = {}) {
  const kept = Object.entries(given).filter(([, value]) => value !== "" && value !== 0 && value !== undefined);
  const address = `#${name}${kept.length ? `?${new URLSearchParams(kept)}` : ""}`;
  if (address === location.hash) show().catch(fail);
  else location.hash = address;
}

async function show({ keepFocus = false } = {}) {
  const turn = ++visit, { name, given } = place();
  const focused = keepFocus ? document.activeElement?.dataset.cluster : null, scroll = window.scrollY;
  main.classList.add("waiting");
  try {
    const views = { search: showSearch, near: showNear };
    const made = await (views[name] ?? showCluster)(given, name, () => turn === visit);
    if (turn !== visit) return;
    tell(tree.problem ?? "");
    if (made) main.replaceChildren(...made);
    if (!keepFocus) {
      window.scrollTo(0, 0);
      if (document.activeElement !== query) main.querySelector("h1")?.focus({ preventScroll: true });
    } else {
      main.querySelector(`[data-cluster="${CSS.escape(focused ?? "")}"]`)?.focus({ preventScroll: true });
      window.scrollTo(0, scroll);
    }
  } catch (error) {
    if (turn === visit) fail(error);
  } finally {
    if (turn === visit) main.classList.remove("waiting");
  }
}

function showPath(clusters, last) {
  const steps = [["", "All"], ...clusters.map((cluster) => [cluster, cluster])];
  if (last) steps.push([null, last]);
  path.hidden = steps.length === 1;
  path.replaceChildren(h("ol", {}, steps.map(([cluster, text], i) =>
    h("li", {}, cluster === null ? h("span", { "aria-current": "page" }, text)
      : h("a", { href: `#${cluster}`, "aria-current": i === steps.length - 1 ? "page" : null }, text)))));
  document.title = `${last ?? title(clusters.at(-1))} · ${tree.name}`;
}

// -- a cluster --------------------------------------------------------------------------------------------------------

async function showCluster(given, name, current) {
  const order = given.order ?? "size", start = Number(given.start ?? 0), which = given.samples ?? "closest";
  const of = { name, n: 24 }, leaf = name.startsWith("1:");
  const asked = [ask("cluster", { name })];
  asked.push(leaf ? null : ask("children", { ...of, order, start }));
  asked.push(name ? ask("members", { ...of, order: which, start: leaf ? start : 0, n: leaf ? 24 : 12 }) : null);
  const [cluster, children, members] = await Promise.all(asked);
  if (!current()) return null;
  facts = cluster;
  showPath(cluster.path);
  const again = (changes) => go(name, { ...given, ...changes });
  announce(`${title(name)}, ${plural(cluster.n_samples, "sample")}${leaf ? "" : `, ${plural(cluster.n_children, "cluster")} inside`}`);
  return [
    ...head(cluster, name),
    ...(children ? childrenSection(children, order, again) : []),
    ...(members ? membersSection(members, which, leaf, again) : []),
  ];
}

function head(cluster, name) {
  const near = cluster.siblings, parts = [h("strong", { class: "number" }, plural(cluster.n_samples, "sample"))];
  if (cluster.level > 1) parts.push(` in ${plural(cluster.n_children, "cluster")}`);
  if (near) {
    parts.push(` · rank ${count(near.position + 1)} of ${count(near.n)} by size in `,
      h("a", { href: `#${near.parent}` }, near.parent ? `cluster ${near.parent}` : "the tree"));
  } else parts.push(` · ${plural(tree.n_clusters.length, "level")}: ${tree.n_clusters.map(count).reverse().join(" › ")} clusters`);
  const step = (label, to, hint) => h("button", { type: "button", disabled: !to, title: hint, onclick: () => go(to) }, label);
  const steps = near ? h("div", { class: "steps" }, step("‹ Larger", near.previous, "Previous sibling ( [ )"), step("Smaller ›", near.next, "Next sibling ( ] )")) : null;
  const out = cluster.excluded ? h("span", { class: "badge none" }, cluster.weight === 0 ? "excluded" : "excluded with a parent cluster") : null;
  const rows = [h("div", { class: "title" }, h("h1", { tabindex: "-1" }, title(name)), out, steps), h("p", { class: "facts" }, parts)];
  if (name) rows.push(h("div", { class: "panel" }, bars(cluster, largestShare([cluster], drawSize()), drawSize()), weights(cluster)));
  return rows;
}

function weights(cluster) {
  const choices = [[0, "Exclude"], [0.5, "½"], [1, "1"], [2, "2"], [4, "4"]];
  const other = choices.every(([weight]) => weight !== cluster.weight) ? cluster.weight : "";
  const input = h("input", { type: "number", min: "0", max: "1000", step: "any", value: other, placeholder: "other", "aria-label": "Other weight",
    onchange: () => input.value !== "" && mark(cluster.cluster, Number(input.value)) });
  return h("div", { class: "weights", role: "group", "aria-label": "Weight in the next draw" }, h("span", { class: "label" }, "Weight"),
    choices.map(([weight, text]) => h("button", { type: "button", class: weight === 0 ? "none" : null, "data-weight": weight,
      "aria-pressed": String(cluster.weight === weight), onclick: () => mark(cluster.cluster, weight) }, text)), input);
}

function childrenSection(page, order, again) {
  const orders = [["size", "largest first"], ["closest", "closest first"], ["furthest", "furthest first"]];
  if (tree.subset !== null) orders.push(["subset", "most in subset first"], ["pool", "least in subset first"]);
  const sort = h("select", { "aria-label": "Order", onchange: () => again({ order: sort.value === "size" ? "" : sort.value, start: 0 }) },
    orders.map(([value, text]) => h("option", { value, selected: value === order }, text)));
  const most = largestShare(page.children, drawSize());
  return [
    h("div", { class: "section" }, h("h2", {}, plural(page.n, "cluster")), legend(tree.subset !== null, drawSize()), h("div", { class: "tools" }, sort)),
    grid(tree.images ? "images" : "", page.children.map((child) => clusterCard(child, most, drawSize(), mark))),
    pager(page.start, page.children.length, page.n, (start) => again({ start })),
  ];
}

function membersSection(page, which, leaf, again) {
  const tab = (value, text) => h("button", { type: "button", "aria-pressed": String(which === value),
    onclick: () => again({ samples: value === "closest" ? "" : value, ...(leaf ? { start: 0 } : {}) }) }, text);
  const tabs = h("div", { class: "tabs", role: "group", "aria-label": "Which samples" },
    tab("closest", leaf ? "Closest first" : "Near the center"), tab("furthest", leaf ? "Furthest first" : "At the border"));
  const heading = leaf ? plural(page.n, "sample") : "Samples";
  return [
    h("div", { class: "section" }, h("h2", {}, heading), h("div", { class: "tools" }, tabs)),
    sampleGrid(page.samples),
    leaf ? pager(page.start, page.samples.length, page.n, (start) => again({ start })) : "",
  ];
}

function sampleGrid(samples, withPlace = false) {
  const kind = samples[0]?.image && samples[0].caption === null ? "pictures" : "samples";
  return grid(kind, samples.map((sample) => sampleCard(sample, openDetail, withPlace)));
}

function openDetail(sample) {
  fillDetail(detail, sample);
  detail.showModal();
}

// -- searches ---------------------------------------------------------------------------------------------------------

async function showSearch({ what: kind = "caption", q = "" }, _name, current) {
  const names = { caption: "Captions containing", id: "IDs containing", row: "Row" };
  facts = null;
  showPath([], `${names[kind] ?? kind} “${q}”`);
  const progress = h("p", { class: "facts" }), results = h("div"), samples = [];
  const more = h("button", { type: "button", onclick: () => run(24).catch(fail) }, "Continue search");
  const stop = h("button", { type: "button", hidden: true, onclick: () => { stop.hidden = true; } }, "Stop");
  let next = 0;
  const run = async (wanted) => {
    const goal = samples.length + wanted;
    more.hidden = true;
    stop.hidden = false;
    let searched = 0;
    try {
      while (next !== null && samples.length < goal && !stop.hidden) {
        const found = await ask("search", { what: kind, query: q, start: next, n: goal - samples.length });
        if (!current()) return;
        samples.push(...found.samples);
        ({ next, searched } = found);
        progress.textContent = `${plural(samples.length, "sample")} found${next === null ? "" : `, ${percent(searched)} searched`}`;
        if (found.samples.length) results.replaceChildren(sampleGrid(samples, true));
      }
    } finally { stop.hidden = true; }
    more.hidden = next === null;
    announce(progress.textContent);
  };
  const heading = h("h1", { tabindex: "-1" }, `${names[kind] ?? kind} “${q}”`);
  main.replaceChildren(h("div", { class: "title" }, heading), progress, results, h("div", { class: "pager" }, more, stop));
  main.classList.remove("waiting");
  await run(24);
  return null;
}

let vector = null;  // the vector that the user gave, as bytes of a file or as numbers; it is not in the address

async function showNear({ row, level = "1" }, _name, current) {
  if (row === undefined && vector === null) throw new Error("Enter the vector again: it is not part of the page's address.");
  const text = row === undefined ? "the vector" : `row ${count(Number(row))}`;
  const found = row === undefined
    ? await unpack(await fetch(`api/nearest?${new URLSearchParams({ level })}`, { method: "POST", body: vector }))
    : await ask("nearest_to_row", { row, level });
  if (!current()) return null;
  facts = null;
  showPath([], `Near ${text}`);
  const choose = h("select", { "aria-label": "Level", onchange: () => go("near", { row, level: choose.value }) },
    tree.n_clusters.map((n, i) => h("option", { value: i + 1, selected: String(i + 1) === level }, `level ${i + 1}: ${plural(n, "cluster")}`)));
  announce(`${plural(found.children.length, "cluster")} near ${text}`);
  const most = largestShare(found.children, drawSize());
  return [h("div", { class: "title" }, h("h1", { tabindex: "-1" }, `Clusters near ${text}`)),
    h("div", { class: "section" }, h("h2", {}, "Nearest first"), h("div", { class: "tools" }, choose)),
    grid(tree.images ? "images" : "", found.children.map((child) => clusterCard(child, most, drawSize(), mark)))];
}

const rowNumber = (text) => text.replace(/^row\b|[\s,]/gi, "");  // also accepts the form shown on cards: "row 12,345"

function setUpSearch() {
  const kinds = [["caption", "Captions", tree.captions], ["id", "IDs", tree.ids], ["row", "Row number", true],
    ["near", "Near row", tree.embeddings], ["vector", "Near vector", true]];
  what.replaceChildren(...kinds.filter(([, , able]) => able).map(([value, text]) => h("option", { value }, text)));
  const hints = { caption: "wolf", row: "1234", near: "1234", vector: "0.1, 0.2, …" };
  what.addEventListener("change", () => {
    file.hidden = what.value !== "vector";
    query.placeholder = hints[what.value] ?? "Search  ( / )";
    query.focus();
  });
  file.addEventListener("change", async () => {
    vector = await file.files[0]?.arrayBuffer() ?? null;
    if (vector) go("near", {});
  });
  at("search").addEventListener("submit", (event) => {
    event.preventDefault();
    const text = query.value.trim();
    if (!text) return;
    query.blur();
    if (what.value === "near") go("near", { row: rowNumber(text) });
    else if (what.value === "vector") { vector = text; go("near", {}); }
    else go("search", { what: what.value, q: what.value === "row" ? rowNumber(text) : text });
  });
}

// -- marks ------------------------------------------------------------------------------------------------------------

let changed = Promise.resolve();  // the last change; the next request waits for it, so that they arrive in order

async function take(text, name, given) {
  changed = changed.catch(() => null).then(() => change(name, given));
  try {
    marks = await changed;
    showMarks();
    tell("");
    announce(text);
    await show({ keepFocus: true });
  } catch (error) { fail(error); }
}

const mark = (cluster, weight) => take(`Cluster ${cluster} ${weight === 1 ? "has no mark" : weightText(weight)}`, "mark", { cluster, weight });
const undo = () => take("Undone", "undo");
const save = () => take(`Saved to ${marks.file}`, "save");

function showMarks() {
  at("count").textContent = count(marks.n);
  at("toggle").classList.toggle("unsaved", marks.unsaved);
  const item = (one) => h("li", {}, h("a", { href: `#${one.cluster}` }, one.cluster),
    h("span", { class: one.weight === 0 ? "badge none" : "badge" }, weightText(one.weight)),
    h("span", { class: "muted number" }, plural(one.n_samples, "sample")),
    h("button", { type: "button", "aria-label": `Remove mark of ${one.cluster}`, onclick: () => mark(one.cluster, 1) }, "✕"));
  const size = h("input", { type: "number", min: "1", max: tree.n_samples, value: drawSize() || tree.subset || Math.ceil(tree.n_samples / 10), "aria-label": "Size of the next draw" });
  const draw = h("form", { onsubmit: (event) => { event.preventDefault(); take("Draw shown", "draw", { size: Number(size.value) }); } },
    size, h("button", { type: "submit" }, "Show"),
    drawSize() ? h("button", { type: "button", onclick: () => take("Draw hidden", "draw", { size: 0 }) }, "Hide") : null);
  aside.replaceChildren(
    h("h2", {}, "Marks for the next draw"),
    marks.n ? h("ul", {}, marks.marks.map(item)) : h("p", { class: "muted" }, "None yet. Exclude clusters or give them a weight; a weight of 2 doubles their share among their siblings."),
    marks.n > marks.marks.length ? h("p", { class: "muted" }, `and ${count(marks.n - marks.marks.length)} more`) : "",
    h("div", { class: "buttons" }, h("button", { type: "button", class: "main", id: "save", disabled: !marks.unsaved, onclick: save }, `Save ${marks.file}`),
      h("button", { type: "button", id: "undo", disabled: !marks.can_undo, onclick: undo }, "Undo")),
    h("h3", {}, "Preview of a draw"), draw,
    h("p", { class: "muted" }, drawSize() ? `${count(Math.min(drawSize(), marks.draw.available))} of ${plural(marks.draw.available, "sample")} that are not excluded` : "Shows how many samples of each cluster a draw with these marks would take."),
    h("code", {}, marks.command.replace("SIZE", drawSize() || size.value)));
}

function toggleMarks(open = aside.hidden) {
  aside.hidden = !open;
  at("toggle").setAttribute("aria-expanded", String(open));
}

// -- keys -------------------------------------------------------------------------------------------------------------

function up() {
  if (!facts) return history.back();
  if (facts.siblings) go(facts.siblings.parent);
}

document.addEventListener("keydown", (event) => {
  if (event.ctrlKey || event.altKey || event.metaKey || detail.open) return;
  const typing = event.target.matches("input, select");
  if (event.key === "Escape") {
    event.preventDefault();
    if (typing) main.querySelector("h1")?.focus();
    else if (aside.contains(event.target)) { toggleMarks(false); at("toggle").focus(); }
    else up();
  } else if (typing) return;
  else if (event.key === "/") { event.preventDefault(); query.focus(); query.select(); }
  else if (event.key === "u" && marks.can_undo) undo();
  else if (event.key === "x") {
    const card = event.target.closest("[data-cluster]");
    const [cluster, weight] = card ? [card.dataset.cluster, Number(card.dataset.weight)] : [facts?.cluster, facts?.weight];
    if (cluster) mark(cluster, weight === 0 ? 1 : 0);
  } else if (event.key === "[" && facts?.siblings?.previous) go(facts.siblings.previous);
  else if (event.key === "]" && facts?.siblings?.next) go(facts.siblings.next);
  else if (event.key.startsWith("Arrow") && event.target === main.querySelector("h1")) {
    event.preventDefault();
    main.querySelector(".grid .card[tabindex='0']")?.focus();
  }
});

// -- start ------------------------------------------------------------------------------------------------------------

async function begin() {
  tree = await ask("tree");
  ({ marks } = tree);
  at("name").textContent = tree.name;
  setUpSearch();
  showMarks();
  at("toggle").addEventListener("click", () => toggleMarks());
  window.addEventListener("hashchange", () => show());
  await show();
}

begin().catch(fail);
