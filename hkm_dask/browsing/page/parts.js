// Building blocks of the page. Data is inserted as text only, never as HTML.

export function h(tag, attributes = {}, ...children) {
  const element = document.createElement(tag);
  for (const [name, value] of Object.entries(attributes)) {
    if (value === null || value === undefined || value === false) continue;
    if (name.startsWith("on")) element.addEventListener(name.slice(2), value);
    else element.setAttribute(name, value === true ? "" : value);
  }
  element.append(...children.flat().filter((child) => child !== null && child !== undefined));
  return element;
}

export const count = (n) => n.toLocaleString("en-US", { maximumFractionDigits: n < 100 ? 1 : 0 });
export const plural = (n, noun) => `${count(n)} ${noun}${n === 1 ? "" : "s"}`;

export function percent(share) {
  const value = 100 * share;
  if (value === 0) return "0 %";
  return value < 0.001 ? "< 0.001 %" : `${value.toLocaleString("en-US", { maximumSignificantDigits: 2 })} %`;
}

export const weightText = (weight) => (weight === 0 ? "excluded" : weight === 0.5 ? "× ½" : `× ${weight}`);
export const title = (cluster) => (cluster ? `Cluster ${cluster}` : "All clusters");

function track(kind, share, most, label) {
  const fill = h("div", { class: `fill ${kind}` });
  fill.style.width = share > 0 ? `max(2px, ${(100 * share) / most}%)` : "0";
  return [h("div", { class: "track", "aria-hidden": "true" }, fill), h("span", { class: "number" }, label)];
}

// Shares of a cluster in the pool, the subset and the next draw, on the same scale for all clusters shown together.
export function bars(facts, most, drawSize) {
  const rows = [track("pool", facts.share, most, `${percent(facts.share)} of pool`)];
  if (facts.n_subset !== undefined)
    rows.push(track("subset", facts.subset_share, most, `${percent(facts.subset_share)} of subset, ${count(facts.n_subset)}`));
  if (facts.n_drawn !== undefined && drawSize)
    rows.push(track("draw", facts.n_drawn / drawSize, most, `${percent(facts.n_drawn / drawSize)} of draw, ≈ ${count(facts.n_drawn < 1 ? facts.n_drawn : Math.round(facts.n_drawn))}`));
  return h("div", { class: "bars" }, rows.flat());
}

export const largestShare = (facts, drawSize) =>
  Math.max(...facts.map((one) => Math.max(one.share, one.subset_share ?? 0, drawSize ? (one.n_drawn ?? 0) / drawSize : 0)), 0);

export function legend(subset, draw) {
  if (!subset && !draw) return null;
  return h("p", { class: "legend", "aria-hidden": "true" }, h("span", {}, "pool"),
    subset ? h("span", { class: "subset" }, "subset") : null, draw ? h("span", { class: "draw" }, "next draw") : null);
}

const sampleName = (sample) => sample.caption ?? sample.id ?? `row ${sample.row}`;

function picture(sample, kind) {
  return h("img", { src: `${kind}/${sample.row}`, alt: sampleName(sample), loading: "lazy", decoding: "async" });
}

function preview(samples) {
  if (!samples.length) return h("span", { class: "texts muted" }, "empty");
  if (samples[0].image) return h("span", { class: "thumbs" }, samples.map((sample) => picture(sample, "thumb")));
  return h("span", { class: "texts" }, samples.slice(0, 4).map((sample) => h("span", {}, sampleName(sample))));
}

// One cluster in a list: a link, and a button that excludes or includes it.
export function clusterCard(facts, most, drawSize, mark) {
  const inside = facts.level > 1 ? ` · ${plural(facts.n_children, "cluster")}` : "";
  const badge = facts.weight !== 1 ? h("span", { class: facts.weight === 0 ? "badge none" : "badge" }, weightText(facts.weight)) : null;
  const spoken = [title(facts.cluster), plural(facts.n_samples, "sample") + inside, `${percent(facts.share)} of the pool`,
    facts.excluded ? "excluded" : facts.weight !== 1 ? `weight ${facts.weight}` : null, ...facts.samples.slice(0, 3).map(sampleName)];
  const card = h("a", { class: "card", href: `#${facts.cluster}`, "data-cluster": facts.cluster, "data-weight": facts.weight,
    "aria-label": spoken.filter((text) => text !== null).join(", ") },
    h("span", { class: "head" }, h("strong", {}, facts.cluster), h("span", { class: "muted number" }, plural(facts.n_samples, "sample") + inside), badge),
    preview(facts.samples),
    facts.distance === undefined ? null : h("span", { class: "distance muted number" }, `distance ${facts.distance.toPrecision(4)}`),
    bars(facts, most, drawSize));
  const out = facts.weight === 0;
  const label = out ? `Include ${facts.cluster}` : `Exclude ${facts.cluster}`;
  const button = h("button", { class: "quick", type: "button", tabindex: "-1", "aria-label": label, title: `${label} (x)`,
    onclick: () => mark(facts.cluster, out ? 1 : 0) }, out ? "↺" : "✕");
  return h("li", { class: facts.excluded ? "left-out" : null }, card, button);
}

export function sampleCard(sample, show, withPlace = false) {
  const columns = Object.entries(sample.columns).filter(([, value]) => value !== null).slice(0, 3);
  const meta = [sample.caption !== null && sample.id !== null ? sample.id : null, `row ${count(sample.row)}`,
    ...columns.map(([name, value]) => `${name} ${value}`)].filter((text) => text !== null).join(" · ");
  const text = sample.caption ?? sample.id;
  const card = h("button", { class: "card sample", type: "button", "data-row": sample.row, onclick: () => show(sample) },
    sample.image ? picture(sample, "thumb") : null,
    text === null || (sample.image && sample.caption === null) ? null : h("span", { class: "caption" }, text || "(no text)"),
    h("span", { class: "meta", title: meta }, meta));
  return h("li", {}, card, withPlace ? h("p", { class: "place" }, placeOf(sample)) : null);
}

export function placeOf(sample) {
  if (!sample.path.length) return [h("span", { class: "muted" }, "not clustered")];
  return sample.path.flatMap((cluster, i) => [i ? " › " : "", h("a", { href: `#${cluster}` }, cluster)]);
}

export function fillDetail(dialog, sample) {
  const close = h("button", { type: "button", onclick: () => dialog.close() }, "Close");
  const near = h("a", { href: `#near?row=${sample.row}`, onclick: () => dialog.close() }, "Clusters near this sample");
  const facts = [["row", count(sample.row)], ["id", sample.id], ...Object.entries(sample.columns)].filter(([, value]) => value !== null);
  const place = h("dd", {}, placeOf(sample));
  place.addEventListener("click", (event) => event.target.closest("a") && dialog.close());
  dialog.replaceChildren(
    h("h2", { id: "detail-title" }, sampleName(sample)),
    sample.image ? picture(sample, "image") : "",
    h("dl", {}, facts.flatMap(([name, value]) => [h("dt", {}, name), h("dd", {}, String(value))]), h("dt", {}, "clusters"), place),
    h("div", { class: "buttons" }, near, close));
}

// A grid that arrow keys move within; Tab enters and leaves it as a whole.
export function grid(kind, items) {
  const list = h("ul", { class: `grid ${kind}` }, items);
  const cards = [...list.querySelectorAll(".card")];
  const choose = (card) => cards.forEach((other) => other.setAttribute("tabindex", other === card ? "0" : "-1"));
  if (cards.length) choose(cards[0]);
  list.addEventListener("focusin", (event) => event.target.matches(".card") && choose(event.target));
  list.addEventListener("keydown", (event) => {
    const at = cards.indexOf(event.target);
    if (at < 0 || event.ctrlKey || event.altKey || event.metaKey) return;
    const columns = Math.max(1, cards.filter((card) => Math.abs(card.getBoundingClientRect().top - cards[0].getBoundingClientRect().top) < 2).length);
    const moves = { ArrowRight: 1, ArrowLeft: -1, ArrowDown: columns, ArrowUp: -columns };
    let to = at + (moves[event.key] ?? 0);
    if (event.key === "Home") to = 0;
    if (event.key === "End") to = cards.length - 1;
    if (to === at || !cards[to]) return;
    event.preventDefault();
    cards[to].focus();
  });
  return list;
}

export function pager(start, shown, total, go) {
  if (total <= shown && !start) return "";
  const step = (label, to, able) => h("button", { type: "button", disabled: !able, onclick: () => go(Math.max(0, to)) }, label);
  return h("div", { class: "pager" }, step("‹ Previous", start - 24, start > 0),
    h("span", { class: "number" }, `${count(start + 1)} – ${count(start + shown)} of ${count(total)}`),
    step("Next ›", start + 24, start + shown < total));
}
