// The picture. Nodes keep their positions; new ones take a free place.

import cytoscape from "cytoscape";

import type { DrawnEdge, DrawnNode, Drawing } from "./drawing";
import type { LayoutAnswer, LayoutRequest } from "./layout";

type Position = { x: number; y: number };

export interface Box extends Position {
  width: number;
  height: number;
}

const CHARACTER = 7.4;
/** Height of the line from a node to itself. */
const LOOP = 46;

/** Returns the size of a node with its label. */
export function size(node: DrawnNode): { width: number; height: number } {
  const longest = Math.max(shortened(node.label).length, shortened(node.detail).length);
  return { width: Math.max(72, Math.ceil(longest * CHARACTER) + 28), height: node.detail === "" ? 34 : 46 };
}

export function shortened(label: string): string {
  return label.length > 34 ? `${label.slice(0, 33)}…` : label;
}

export class Picture {
  private readonly cy: cytoscape.Core;
  /** The worker that arranges nodes, if it runs. */
  private worker: Worker | undefined;
  /** Positions of all nodes that were drawn, by the place on which they depend. */
  private readonly positions = new Map<string, Map<string, Position>>();
  /** Points by which edges pass nodes, as they were arranged, by the same place. */
  private readonly routes = new Map<string, Map<string, Position[]>>();
  private requests = 0;
  /** Requests to the worker by their place: one for each, as the worker answers slowly on large pictures. */
  private readonly pending = new Map<string, { number: number; isAgain: boolean }>();
  private isFailed = false;
  /** True if the view is no longer the fitted one. */
  private isMoved = false;
  private key = "";
  /** Place for which the view was fitted. */
  private fitted: string | undefined;
  drawing: Drawing = { nodes: [], edges: [], shown: [], notes: [] };

  constructor(
    container: HTMLElement,
    select: (id: string) => void,
    open: (id: string) => void,
    private readonly arranged: () => void,
    private readonly report: (problem: string) => void,
  ) {
    this.cy = cytoscape({ container, minZoom: 0.01, maxZoom: 3, boxSelectionEnabled: false, autoungrabify: false });
    this.restyle();
    // It loads while the map does.
    this.worker = this.startWorker();
    this.cy.on("tap", (event) => select(event.target === this.cy ? "" : event.target.id()));
    this.cy.on("dbltap", "node", (event) => open(event.target.id()));
    this.cy.on("dragfree", "node", (event) => this.moved(event.target));
    this.cy.on("dragpan scrollzoom pinchzoom", () => (this.isMoved = true));
    new ResizeObserver(() => (this.isMoved ? this.cy.resize() : this.fit())).observe(container);
  }

  /** Shows a drawing, at once or when its nodes are arranged: they are if none of them has a position yet. */
  show(drawing: Drawing, key: string): void {
    [this.drawing, this.key] = [drawing, key];
    const known = this.remembered();
    if (drawing.nodes.length > 0 && !drawing.nodes.some(({ id }) => known.has(id))) {
      this.arrange(false);
      return;
    }
    this.placeNew(drawing, known);
    this.sync(drawing, known);
    if (this.fitted !== key) this.fit();
    this.fitted = key;
    this.arranged();
  }

  /** Arranges the nodes of the present place again. They keep their positions until the worker answers. */
  arrangeAgain(): void {
    if (this.drawing.nodes.length > 0) this.arrange(true);
  }

  select(id: string): void {
    this.cy.elements(":selected").unselect();
    if (id !== "") this.cy.getElementById(id).select();
  }

  /** Moves the view to a node, if it is not visible. */
  reveal(id: string): void {
    const node = this.cy.getElementById(id);
    if (node.empty()) return;
    const [box, view] = [node.boundingBox(), this.cy.extent()];
    if (box.x1 >= view.x1 && box.x2 <= view.x2 && box.y1 >= view.y1 && box.y2 <= view.y2) return;
    this.isMoved = true;
    this.cy.center(node);
  }

  fit(): void {
    this.cy.resize();
    this.cy.fit(undefined, 18);
    if (this.cy.zoom() > 1.3) {
      this.cy.zoom(1.3);
      this.cy.center();
    }
    this.isMoved = false;
  }

  zoom(factor: number): void {
    const middle = { x: this.cy.width() / 2, y: this.cy.height() / 2 };
    this.isMoved = true;
    this.cy.zoom({ level: this.cy.zoom() * factor, renderedPosition: middle });
  }

  /** Returns the nodes' boxes, for exports and tests. */
  boxes(): Map<string, Box> {
    const known = this.remembered();
    return new Map(
      this.drawing.nodes.map((node) => [node.id, { ...(known.get(node.id) ?? { x: 0, y: 0 }), ...size(node) }]),
    );
  }

  /** Returns whether all nodes are in view, for tests. */
  isInView(): boolean {
    const [all, view] = [this.cy.nodes().boundingBox(), this.cy.extent()];
    return all.x1 >= view.x1 && all.x2 <= view.x2 && all.y1 >= view.y1 && all.y2 <= view.y2;
  }

  /** Returns the next node in a direction, for the keyboard. */
  neighbour(from: string, key: string): string {
    const boxes = this.boxes();
    const start = boxes.get(from);
    if (!start) return [...boxes].sort(([, a], [, b]) => a.x - b.x || a.y - b.y)[0]?.[0] ?? "";
    let best = { id: from, distance: Infinity };
    for (const [id, box] of boxes) {
      const [dx, dy] = [box.x - start.x, box.y - start.y];
      const isSideways = key === "ArrowLeft" || key === "ArrowRight";
      const sign = key === "ArrowRight" || key === "ArrowDown" ? 1 : -1;
      const along = sign * (isSideways ? dx : dy);
      const across = isSideways ? dy : dx;
      const distance = along + 2 * Math.abs(across);
      if (id !== from && along > 1 && distance < best.distance) best = { id, distance };
    }
    return best.id;
  }

  async png(): Promise<Blob> {
    const background = getComputedStyle(document.documentElement).getPropertyValue("--surface").trim();
    return this.cy.png({ output: "blob-promise", full: true, scale: 2, bg: background });
  }

  /** Takes colours from the style sheet, which follows the theme of the system. */
  restyle(): void {
    const values = getComputedStyle(document.documentElement);
    const color = (name: string) => values.getPropertyValue(`--${name}`).trim();
    this.cy.style(style(color) as cytoscape.StylesheetJson);
  }

  private remembered(): Map<string, Position> {
    const known = this.positions.get(this.key) ?? new Map<string, Position>();
    this.positions.set(this.key, known);
    return known;
  }

  /** Remembers where a node was dragged. Its edges become straight. */
  private moved(node: cytoscape.NodeSingular): void {
    // The picture is that of the last place until the nodes of this one are arranged.
    if (!this.remembered().has(node.id())) return;
    this.remembered().set(node.id(), { ...node.position() });
    for (const edge of node.connectedEdges()) this.routes.get(this.key)?.delete(edge.id());
    this.sync(this.drawing, this.remembered());
  }

  /** Asks the worker to arrange the present drawing, unless it already arranges one of this place. */
  private arrange(isAgain: boolean): void {
    if (this.pending.has(this.key)) return;
    this.worker ??= this.startWorker();
    const { nodes, edges } = this.drawing;
    const loops = new Set(edges.filter(({ source, target }) => source === target).map(({ source }) => source));
    const box = (node: DrawnNode) => ({ id: node.id, width: size(node).width, height: size(node).height + (loops.has(node.id) ? 2 * LOOP : 0) });
    const request: LayoutRequest = {
      number: ++this.requests,
      nodes: nodes.map(box),
      edges: edges.filter(({ source, target }) => source !== target).map(({ source, target }) => [source, target]),
    };
    this.pending.set(this.key, { number: request.number, isAgain });
    this.worker.postMessage(request);
  }

  private startWorker(): Worker {
    const worker = new Worker("layout.js");
    worker.addEventListener("message", (event: MessageEvent<LayoutAnswer>) => this.take(event.data));
    worker.addEventListener("error", (event) => this.fail(event.message));
    return worker;
  }

  /** Takes positions from the worker. Nodes that came since have none. */
  private take({ number, positions, routes }: LayoutAnswer): void {
    const [key, request] = [...this.pending].find(([, one]) => one.number === number) ?? [];
    if (key === undefined || request === undefined) return;
    this.pending.delete(key);
    const arranged = positions.map(([id, x, y]): [string, Position] => [id, { x, y }]);
    // Nodes that were shown in the meantime do not move.
    const known = request.isAgain ? [] : this.positions.get(key) ?? [];
    this.positions.set(key, new Map([...arranged, ...known]));
    this.routes.set(key, new Map(routes));
    if (this.isFailed) this.report("");
    this.isFailed = false;
    if (this.fitted === key) this.fitted = undefined;
    if (this.key === key) this.show(this.drawing, key);
  }

  /** Reports a failure of the worker. The next request starts another one. */
  private fail(reason: string | undefined): void {
    this.worker?.terminate();
    this.worker = undefined;
    this.pending.clear();
    this.isFailed = true;
    this.report(`The nodes could not be arranged (${reason || "the worker does not run"}). Select fewer by a filter, or arrange them again.`);
  }

  /** Gives each new node a free place near its neighbours. */
  private placeNew(drawing: Drawing, known: Map<string, Position>): void {
    const taken: Box[] = drawing.nodes.flatMap((node) => {
      const at = known.get(node.id);
      return at ? [{ ...at, ...size(node) }] : [];
    });
    for (const node of drawing.nodes) {
      if (known.has(node.id)) continue;
      const edge = drawing.edges.find((one) => (one.source === node.id ? known.has(one.target) : one.target === node.id && known.has(one.source)));
      const isServer = edge?.target === node.id;
      const anchor = known.get((isServer ? edge?.source : edge?.target) ?? "") ?? { x: 0, y: 0 };
      const box = { ...freePlace({ x: anchor.x + (isServer ? 260 : -260), y: anchor.y }, size(node), taken), ...size(node) };
      taken.push(box);
      known.set(node.id, { x: box.x, y: box.y });
    }
  }

  private sync(drawing: Drawing, known: Map<string, Position>): void {
    const wanted = new Map<string, cytoscape.ElementDefinition>();
    for (const node of drawing.nodes) {
      wanted.set(node.id, { group: "nodes", data: nodeData(node), position: { ...(known.get(node.id) ?? { x: 0, y: 0 }) } });
    }
    const ids = new Set(drawing.edges.map(({ id }) => id));
    for (const edge of drawing.edges) {
      const isTwoWay = ids.has(`${edge.target}>${edge.source}`);
      const route = this.routes.get(this.key)?.get(edge.id) ?? [];
      wanted.set(edge.id, { group: "edges", data: { ...edgeData(edge), ...bends(edge, isTwoWay ? [] : route, known) } });
    }
    this.cy.batch(() => {
      this.cy.elements().filter((one) => !wanted.has(one.id())).remove();
      const added: cytoscape.ElementDefinition[] = [];
      for (const [id, definition] of wanted) {
        const present = this.cy.getElementById(id);
        if (present.empty()) added.push(definition);
        else update(present, definition);
      }
      // One by one, each would cost as much as all that are there.
      this.cy.add(added);
    });
  }
}

/** Changes what differs: each change makes the library compute the element's style and lines again. */
function update(present: cytoscape.CollectionReturnValue, { data, position }: cytoscape.ElementDefinition): void {
  const known = present.data() as Record<string, unknown>;
  if (Object.entries(data).some(([name, value]) => known[name] !== value)) present.data(data);
  const at = present.position();
  if (position && (at.x !== position.x || at.y !== position.y)) present.position(position);
}

/** Returns the free place that is nearest to one, in a fixed order. */
function freePlace(near: Position, own: { width: number; height: number }, taken: Box[]): Position {
  const isFree = ({ x, y }: Position) =>
    taken.every((box) => Math.abs(box.x - x) * 2 > box.width + own.width + 30 || Math.abs(box.y - y) * 2 > box.height + own.height + 24);
  for (let ring = 0; ring < 200; ring++) {
    for (const [dx, dy] of [[0, ring], [0, -ring], [ring, 0], [-ring, 0]] as const) {
      const place = { x: near.x + dx * 60, y: near.y + dy * 60 };
      if (isFree(place)) return place;
    }
  }
  return near;
}

function nodeData(node: DrawnNode) {
  const label = [node.label, node.detail].filter((part) => part !== "").map(shortened).join("\n");
  return { ...size(node), id: node.id, label, shape: node.shape, focus: node.isFocus ? 1 : 0 };
}

/** Returns the points of a route relative to the line between both nodes, as the library wants them. */
function bends(edge: DrawnEdge, route: Position[], known: Map<string, Position>) {
  const [from, to] = [known.get(edge.source), known.get(edge.target)];
  const [dx, dy] = [(to?.x ?? 0) - (from?.x ?? 0), (to?.y ?? 0) - (from?.y ?? 0)];
  const length = Math.hypot(dx, dy);
  if (!from || length === 0) return { route: 0, weights: "0.5", distances: "0" };
  const relative = route.map(({ x, y }) => ({ x: x - from.x, y: y - from.y }));
  const distances = relative.map(({ x, y }) => (y * dx - x * dy) / length);
  if (distances.every((distance) => Math.abs(distance) < 3)) return { route: 0, weights: "0.5", distances: "0" };
  const weights = relative.map(({ x, y }) => (x * dx + y * dy) / (length * length));
  return { route: 1, weights: weights.map((one) => one.toFixed(4)).join(" "), distances: distances.map((one) => one.toFixed(1)).join(" ") };
}

function edgeData(edge: DrawnEdge) {
  const width = 1.2 + Math.min(Math.log10(edge.opened + 1), 6) * 0.55;
  const state = edge.failed > 0 ? "failed" : edge.pending > 0 ? "pending" : "fine";
  const { id, source, target, label } = edge;
  return { id, source, target, label, width, state, inferred: edge.isInferred ? 1 : 0 };
}

function style(color: (name: string) => string): object[] {
  const node = (shape: string, form: string, border: string, line = "solid") => ({
    selector: `node[shape = "${shape}"]`,
    style: { shape: form, "border-color": color(border), "border-style": line },
  });
  return [
    {
      selector: "node",
      style: {
        shape: "round-rectangle", width: "data(width)", height: "data(height)", label: "data(label)",
        "background-color": color("node"), color: color("text"), "border-width": 1.5, "border-color": color("other"),
        "font-family": "system-ui, sans-serif", "font-size": 13, "text-wrap": "wrap", "text-valign": "center",
        "text-halign": "center", "line-height": 1.25, "overlay-opacity": 0, "min-zoomed-font-size": 5,
      },
    },
    node("workload", "round-rectangle", "workload"),
    node("service", "round-rectangle", "service", "dashed"),
    node("namespace", "round-rectangle", "namespace", "double"),
    node("external", "cut-rectangle", "external"),
    node("machine", "rectangle", "machine"),
    { selector: `node[shape = "namespace"]`, style: { "border-width": 4 } },
    { selector: "node[focus = 1]", style: { "border-width": 4, "background-color": color("focus-node") } },
    {
      selector: "edge",
      style: {
        width: "data(width)", "line-color": color("line"), "target-arrow-color": color("line"), "target-arrow-shape": "triangle",
        "arrow-scale": 1.1, "curve-style": "bezier", label: "data(label)", "font-family": "system-ui, sans-serif",
        "font-size": 11, color: color("muted"), "text-wrap": "wrap", "text-background-color": color("surface"),
        "text-background-opacity": 1, "text-background-padding": "2px", "overlay-opacity": 0, "min-zoomed-font-size": 5,
      },
    },
    { selector: "edge:loop", style: { "control-point-step-size": 58, "loop-direction": "0deg", "loop-sweep": "50deg" } },
    {
      selector: "edge[route = 1]",
      style: {
        "curve-style": "segments", "segment-weights": "data(weights)", "segment-distances": "data(distances)",
        "edge-distances": "node-position",
      },
    },
    {
      selector: `edge[state = "failed"]`,
      style: { "line-style": "dashed", "line-color": color("failed"), "target-arrow-color": color("failed"), color: color("failed"), "font-weight": "bold" },
    },
    {
      selector: `edge[state = "pending"]`,
      style: { "line-style": "dotted", "line-color": color("pending"), "target-arrow-color": color("pending"), color: color("pending"), "font-weight": "bold" },
    },
    { selector: "edge[inferred = 1]", style: { "target-arrow-fill": "hollow" } },
    { selector: "node:selected", style: { "border-width": 4, "border-color": color("accent"), "border-style": "solid" } },
    { selector: "edge:selected", style: { "line-color": color("accent"), "target-arrow-color": color("accent"), width: 5, "z-index": 9 } },
  ];
}
