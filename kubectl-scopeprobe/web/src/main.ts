// The page: joins the map, the place that its address names, the picture, the table and the details.

import * as commands from "./commands";
import * as details from "./details";
import { announce, element, get } from "./dom";
import { draw, MOST_NODES, type Drawing } from "./drawing";
import * as exports from "./exports";
import * as filter from "./filter";
import type { Graph } from "./model";
import { Picture } from "./picture";
import * as place from "./place";
import { follow } from "./source";
import { Table } from "./table";

let graph: Graph | undefined;
let here = place.read(location.hash);
let drawing: Drawing = { nodes: [], edges: [], shown: [], notes: [] };
let problem = "";
let isScheduled = false;

const picture = new Picture(get("picture"), select, open, arranged, announce);
const table = new Table((id) => go({ level: "around", around: id, selected: id }), selectMember);
const filterInput = get<HTMLInputElement>("filter");

function go(change: Partial<place.Place>): void {
  const isOther = change.level !== undefined;
  here = { ...here, ...(isOther ? { selected: "", isWhole: false, hops: 1 } : {}), ...change };
  if (here.level !== "around") here.around = "";
  const hash = place.write(here);
  if (hash !== location.hash) history[isOther ? "pushState" : "replaceState"](null, "", hash);
  schedule();
}

function schedule(): void {
  if (isScheduled) return;
  isScheduled = true;
  requestAnimationFrame(() => {
    isScheduled = false;
    render();
  });
}

function render(): void {
  showStatus();
  if (!graph) return;
  const { keeps, errors } = filter.read(here.filter, graph, Date.now());
  get("filter-error").textContent = errors.join("; ");
  filterInput.setAttribute("aria-invalid", String(errors.length > 0));
  if (document.activeElement !== filterInput) filterInput.value = here.filter;
  drawing = draw(graph, here, keeps);
  get("picture").removeAttribute("data-arranged");
  get("picture").setAttribute("aria-label", `Picture of ${drawing.nodes.length} nodes and ${drawing.edges.length} connections; the table has the same edges. Arrow keys select a node, Enter opens it.`);
  picture.show(drawing, place.layoutKey(here));
  showSelected(graph);
  showPath(graph);
  showNotes(graph);
}

function arranged(): void {
  get("picture").setAttribute("data-arranged", here.level);
  picture.select(here.selected);
}

function showSelected(map: Graph): void {
  const edge = drawing.edges.find(({ id }) => id === here.selected);
  const node = drawing.nodes.find(({ id }) => id === here.selected);
  table.show(map, drawing.shown, new Set(edge?.members ?? []));
  if (edge) details.edges(map, edge);
  else if (node) details.node(map, node, drawing.shown, { around: (id) => go({ level: "around", around: id, selected: id }), namespace: openNamespace, select: selectMember });
  else details.nothing();
}

function showStatus(): void {
  const text = problem || graph?.problem || (graph === undefined ? "Reading the map…" : graph.isLive ? "● Live" : "From files");
  get("status").textContent = text;
  get("status").className = problem || graph?.problem ? "problem" : "";
}

function showPath(map: Graph): void {
  const step = (text: string, change: Partial<place.Place>, isHere: boolean) =>
    element("li", {}, element("button", { type: "button", "aria-current": isHere ? "page" : false, click: () => go(change) }, text));
  const steps = [
    step("Namespaces", { level: "namespaces" }, here.level === "namespaces"),
    step("All workloads", { level: "workloads", namespace: "" }, here.level === "workloads" && here.namespace === ""),
  ];
  const namespace = here.level === "around" ? map.nodes.get(here.around)?.namespace ?? "" : here.namespace;
  if (here.level !== "namespaces" && namespace !== "") {
    steps.push(step(namespace, { level: "workloads", namespace }, here.level === "workloads"));
  }
  if (here.level === "around") {
    steps.push(step(map.label(here.around), {}, true));
    steps.push(element("li", {}, element("label", {}, "Hops ", hopsInput())));
  }
  // The same buttons keep the focus.
  const path = get("path");
  const [before, focus] = [path.textContent, [...path.querySelectorAll("button, select")].indexOf(document.activeElement ?? path)];
  path.replaceChildren(...steps);
  if (focus >= 0 && path.textContent === before) path.querySelectorAll<HTMLElement>("button, select")[focus]?.focus();
}

function hopsInput(): HTMLSelectElement {
  const options = [1, 2, 3, 4, 5].map((hops) => element("option", { value: String(hops), selected: hops === here.hops }, String(hops)));
  return element("select", { change: (event) => go({ hops: Number((event.target as HTMLSelectElement).value) }) }, ...options);
}

function showNotes(map: Graph): void {
  const notes = drawing.notes.map((note) => element("span", {}, note));
  get("notes").replaceChildren(...notes);
  get("whole").hidden = drawing.notes.length === 0 || here.isWhole;
  const empty = map.edges.size === 0 ? "There is no edge yet." : "No edge matches.";
  get("empty").textContent = drawing.nodes.length === 0 ? empty : "";
  get("caveats").hidden = map.caveats.length === 0;
  get("caveats-title").textContent = `Incomplete: ${map.caveats.length} ${map.caveats.length === 1 ? "gap is" : "gaps are"} known`;
  get("caveats-list").replaceChildren(...map.caveats.map((text) => element("li", {}, text)));
}

function select(id: string): void {
  go({ selected: id });
}

/** Selects the drawn edge that stands for an edge of the map. */
function selectMember(id: string): void {
  const drawn = drawing.edges.find(({ members }) => members.includes(id));
  if (drawn) select(drawn.id);
  else if (graph) go({ level: "around", around: graph.edges.get(id)?.client ?? "", selected: "" });
}

function openNamespace(namespace: string): void {
  go({ level: "workloads", namespace });
}

function open(id: string): void {
  const node = drawing.nodes.find((one) => one.id === id);
  if (id.startsWith("ns:")) openNamespace(id.slice(3));
  else if (id === "group:further nodes") go({ isWhole: true });
  else if (id.startsWith("group:")) go({ level: "workloads", namespace: "", filter: id === "group:external" ? "is:external" : here.filter });
  else if (node) go({ level: "around", around: id, selected: id });
}

function moveSelection(event: KeyboardEvent): void {
  if (event.ctrlKey || event.metaKey || event.altKey) return;
  const actions: Record<string, () => void> = {
    Enter: () => open(here.selected),
    Escape: () => select(""),
    "+": () => picture.zoom(1.25),
    "-": () => picture.zoom(0.8),
    "0": () => picture.fit(),
  };
  const action = event.key.startsWith("Arrow") ? () => step(event.key) : actions[event.key];
  if (!action) return;
  event.preventDefault();
  action();
}

function step(key: string): void {
  const edge = drawing.edges.find(({ id }) => id === here.selected);
  const next = picture.neighbour(edge?.target ?? here.selected, key);
  if (next === "") return;
  select(next);
  picture.reveal(next);
  const node = drawing.nodes.find(({ id }) => id === next);
  announce(`Selected: ${node?.label ?? ""} ${node?.detail ?? ""}`);
}

const SHORTCUTS: Record<string, () => void> = {
  "/": () => filterInput.focus(),
  g: () => get("picture").focus(),
  t: () => get("table-region").focus(),
  n: () => go({ level: "namespaces" }),
  w: () => go({ level: "workloads", namespace: "" }),
  a: () => picture.arrangeAgain(),
  "?": () => get<HTMLDialogElement>("help").showModal(),
};

document.addEventListener("keydown", (event) => {
  const isTyping = event.target instanceof HTMLInputElement || event.target instanceof HTMLSelectElement;
  if (isTyping || event.ctrlKey || event.metaKey || event.altKey || get<HTMLDialogElement>("help").open) return;
  const action = SHORTCUTS[event.key];
  if (!action) return;
  event.preventDefault();
  action();
});

function on(id: string, action: () => void): void {
  get(id).addEventListener("click", action);
}

get("picture").addEventListener("keydown", moveSelection);
filterInput.addEventListener("input", () => go({ filter: filterInput.value, selected: "" }));
filterInput.addEventListener("keydown", (event) => {
  if (event.key === "Escape") go({ filter: "", selected: "" });
  if (event.key === "Escape") filterInput.value = "";
});
on("fit", () => picture.fit());
on("zoom-in", () => picture.zoom(1.25));
on("zoom-out", () => picture.zoom(0.8));
on("arrange", () => picture.arrangeAgain());
on("whole", () => go({ isWhole: true }));
on("all-rows", () => table.showAll());
on("help-open", () => get<HTMLDialogElement>("help").showModal());
on("help-close", () => get<HTMLDialogElement>("help").close());
on("copy-table", () => graph && void details.copy(commands.table(graph, here)));
on("export-csv", () => graph && exports.download("topology.csv", new Blob([exports.csv(graph, drawing.shown)], { type: "text/csv" })));
on("export-mermaid", () => exports.download("topology.mmd", new Blob([exports.mermaid(drawing)], { type: "text/plain" })));
on("export-svg", () => exports.download("topology.svg", new Blob([exports.svg(drawing, picture.boxes())], { type: "image/svg+xml" })));
on("export-png", () => void picture.png().then((png) => exports.download("topology.png", png)));

addEventListener("hashchange", () => ((here = place.read(location.hash)), schedule()));
addEventListener("popstate", () => ((here = place.read(location.hash)), schedule()));
for (const query of ["(prefers-color-scheme: dark)", "(prefers-contrast: more)"]) {
  matchMedia(query).addEventListener("change", () => picture.restyle());
}
get("limit").textContent = String(MOST_NODES);

// Tests compare the positions of nodes.
Object.assign(window, { scopeprobePicture: picture });

void follow(
  (map) => {
    graph = map;
    schedule();
  },
  (text) => {
    if (text === problem) return;
    problem = text;
    schedule();
  },
);
