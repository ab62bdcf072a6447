// Nodes and edges to draw: those of a level, with groups in place of nodes that would be too many.

import type { Graph, GraphEdge, GraphNode } from "./model";
import { way } from "./model";
import type { Place } from "./place";

/** Maximum number of nodes that are drawn unasked. */
export const MOST_NODES = 300;
/** Maximum numbers of nodes that are drawn at all, with few and with many edges: beyond, the browser needs much memory. */
const MOST_DRAWN = { few: 1200, many: 500 };
const MANY_EDGES = 3000;

export type Shape = "workload" | "service" | "namespace" | "external" | "machine" | "other";

export interface DrawnNode {
  id: string;
  label: string;
  detail: string;
  shape: Shape;
  /** Nodes of the map for which it stands. */
  members: string[];
  isFocus: boolean;
}

export interface DrawnEdge {
  id: string;
  source: string;
  target: string;
  label: string;
  /** Edges of the map for which it stands. */
  members: string[];
  opened: number;
  failed: number;
  pending: number;
  isInferred: boolean;
}

export interface Drawing {
  nodes: DrawnNode[];
  edges: DrawnEdge[];
  /** Edges of the map that the picture and the table show, in the order of the map. */
  shown: string[];
  /** Sentences about what is not drawn one by one. */
  notes: string[];
}

type Keeps = (edge: GraphEdge, id: string) => boolean;

export function draw(graph: Graph, place: Place, keeps: Keeps): Drawing {
  const shown = selectEdges(graph, place, keeps);
  const used = new Set<string>();
  for (const id of shown) {
    const edge = graph.edges.get(id);
    if (edge) used.add(edge.client).add(edge.server);
  }
  if (place.level === "around" && graph.nodes.has(place.around)) used.add(place.around);
  const { standIn, notes } = grouping(graph, place, [...used].sort(), shown);
  return { ...bundled(graph, place, shown, used, standIn), shown, notes };
}

function selectEdges(graph: Graph, place: Place, keeps: Keeps): string[] {
  let shown = [...graph.edges].filter(([id, edge]) => keeps(edge, id));
  if (place.level === "workloads" && place.namespace !== "") {
    const isThere = (node: string) => graph.nodes.get(node)?.namespace === place.namespace;
    shown = shown.filter(([, edge]) => isThere(edge.client) || isThere(edge.server));
  }
  if (place.level === "around") {
    let near = new Set([place.around]);
    for (let hop = 1; hop < place.hops; hop++) {
      const next = new Set(near);
      for (const [, edge] of shown) if (near.has(edge.client) || near.has(edge.server)) next.add(edge.client).add(edge.server);
      near = next;
    }
    shown = shown.filter(([, edge]) => near.has(edge.client) || near.has(edge.server));
  }
  return shown.map(([id]) => id).sort();
}

/** Returns the group of a node: its namespace, or a group of what has none. */
export function groupOf(node: GraphNode | undefined): string {
  if (node?.namespace !== undefined) return `ns:${node.namespace}`;
  if (node?.type === "Node" || node?.type === "HostProcess") return "group:nodes";
  if (node?.type === "UnknownPod") return "group:unknown pods";
  if (node?.type === "APIServer") return "group:API server";
  if (node?.isExternal === true) return "group:external";
  return `group:${node?.label ?? "others"}`;
}

const FURTHER = "group:further nodes";

/** Returns the drawn node that stands for each node, and notes about those that stand for many. */
function grouping(graph: Graph, place: Place, used: string[], shown: string[]) {
  const standIn = new Map(used.map((id) => [id, place.level === "namespaces" ? groupOf(graph.nodes.get(id)) : id]));
  const drawable = shown.length > MANY_EDGES ? MOST_DRAWN.many : MOST_DRAWN.few;
  const most = place.isWhole ? drawable : MOST_NODES;
  const isTooMuch = countDrawn(standIn) > most;
  if (isTooMuch && place.level !== "namespaces") mergeGroups(graph, place, standIn, most);
  if (isTooMuch) mergeRest(graph, place, standIn, shown, most);
  return { standIn, notes: isTooMuch ? notesOf(standIn, place) : [] };
}

function countDrawn(standIn: Map<string, string>): number {
  return new Set(standIn.values()).size;
}

/** Lets groups stand for their nodes, the largest first, until there are few enough. */
function mergeGroups(graph: Graph, place: Place, standIn: Map<string, string>, most: number): void {
  const kept = place.level === "workloads" && place.namespace !== "" ? `ns:${place.namespace}` : undefined;
  const groups = new Map<string, string[]>();
  for (const id of standIn.keys()) {
    const group = groupOf(graph.nodes.get(id));
    if (id === place.around || group === kept) continue;
    const members = groups.get(group);
    if (members) members.push(id);
    else groups.set(group, [id]);
  }
  const bySize = [...groups].sort(([one, a], [other, b]) => b.length - a.length || (one < other ? -1 : 1));
  let left = countDrawn(standIn);
  for (const [name, members] of bySize) {
    if (left <= most || members.length < 2) break;
    for (const id of members) standIn.set(id, name);
    left -= members.length - 1;
  }
}

/** Lets one node stand for those with the fewest edges, as far as there are too many. */
function mergeRest(graph: Graph, place: Place, standIn: Map<string, string>, shown: string[], most: number): void {
  const degree = new Map<string, number>();
  for (const node of standIn.values()) degree.set(node, 0);
  for (const id of shown) {
    const edge = graph.edges.get(id);
    for (const end of edge ? [edge.client, edge.server] : []) {
      const node = standIn.get(end) ?? end;
      degree.set(node, (degree.get(node) ?? 0) + 1);
    }
  }
  if (degree.size <= most) return;
  const busiest = [...degree].sort(([one, a], [other, b]) => b - a || (one < other ? -1 : 1)).map(([node]) => node);
  const rest = new Set(busiest.filter((node) => node !== place.around).slice(most - 1 - (degree.has(place.around) ? 1 : 0)));
  for (const [id, node] of standIn) if (rest.has(node)) standIn.set(id, FURTHER);
}

/** Returns sentences with the number of nodes that are not drawn one by one. On the level of namespaces, groups are the rule. */
function notesOf(standIn: Map<string, string>, place: Place): string[] {
  const notes: string[] = [];
  const merged = [...standIn.values()].filter((drawn) => drawn === FURTHER).length;
  const grouped = [...standIn].filter(([id, drawn]) => drawn !== id && drawn !== FURTHER);
  const groups = new Set(grouped.map(([, drawn]) => drawn)).size;
  if (place.level !== "namespaces" && groups > 0) {
    notes.push(`${grouped.length} nodes are drawn as ${groups} ${groups === 1 ? "group" : "groups"}.`);
  }
  if (merged > 0) notes.push(`${merged} nodes with the fewest edges are drawn as one.`);
  return notes;
}

function bundled(graph: Graph, place: Place, shown: string[], used: Set<string>, standIn: Map<string, string>) {
  const nodes = new Map<string, DrawnNode>();
  for (const id of [...used].sort()) {
    const drawn = standIn.get(id) ?? id;
    const known = nodes.get(drawn);
    if (known) known.members.push(id);
    else nodes.set(drawn, drawnNode(drawn, id, graph.nodes.get(id), place));
  }
  for (const node of nodes.values()) {
    if (node.id.startsWith("ns:") || node.id.startsWith("group:")) {
      node.detail = `${node.members.length} ${node.members.length === 1 ? "peer" : "peers"} shown`;
    }
  }
  const edges = new Map<string, DrawnEdge>();
  for (const id of shown) {
    const edge = graph.edges.get(id);
    if (!edge) continue;
    const [source, target] = [standIn.get(edge.client) ?? edge.client, standIn.get(edge.server) ?? edge.server];
    const key = `${source}>${target}`;
    const bundle = edges.get(key) ?? {
      id: key, source, target, label: "", members: [], opened: 0, failed: 0, pending: 0, isInferred: false,
    };
    bundle.members.push(id);
    bundle.opened += edge.opened;
    bundle.failed += edge.failed;
    bundle.pending += edge.pending;
    bundle.isInferred ||= edge.isInferred === true;
    edges.set(key, bundle);
  }
  for (const bundle of edges.values()) bundle.label = edgeLabel(graph, bundle);
  const byId = (one: { id: string }, other: { id: string }) => (one.id < other.id ? -1 : 1);
  return { nodes: [...nodes.values()].sort(byId), edges: [...edges.values()].sort(byId) };
}

/** Returns the way of an edge without what its server says: the Service's name if it is the server's, and the second port. */
function short(graph: Graph, edge: GraphEdge): string {
  const [name, port] = edge.service?.slice(edge.service.indexOf("/") + 1).split(":") ?? [];
  if (name === undefined || port === undefined) return way(edge);
  const isServers = graph.nodes.get(edge.server)?.name === name;
  return `${isServers ? "" : name}:${port}${edge.protocol === "TCP" ? "" : ` ${edge.protocol}`}`;
}

function edgeLabel(graph: Graph, bundle: DrawnEdge): string {
  const first = graph.edges.get(bundle.members[0] ?? "");
  const what = bundle.members.length === 1 && first ? short(graph, first) : `${bundle.members.length} edges`;
  const via = bundle.members.length === 1 && first?.via?.length ? `via ${first.via.map(container).join(", ")}` : "";
  const failed = bundle.failed > 0 ? `✕ ${bundle.failed} failed` : "";
  const pending = bundle.pending > 0 ? `… ${bundle.pending} pending` : "";
  return [what, via, failed, pending].filter((part) => part !== "").join("\n");
}

/** Returns the container of a proxy, or its name if it has none. */
function container(proxy: string): string {
  return / \(([^()]+)\)$/.exec(proxy)?.[1] ?? proxy;
}

function drawnNode(drawn: string, id: string, node: GraphNode | undefined, place: Place): DrawnNode {
  const base = { id: drawn, members: [id], isFocus: drawn === place.around };
  if (drawn.startsWith("ns:")) return { ...base, label: drawn.slice(3), detail: "", shape: "namespace" };
  if (drawn.startsWith("group:")) {
    const shape = drawn === "group:external" ? "external" : drawn === "group:nodes" ? "machine" : "other";
    return { ...base, label: drawn.slice(6), detail: "", shape };
  }
  // Of two workloads with the same name, the label has the kind.
  const isOne = node?.type !== "Workload" || node.label === `${node.namespace}/${node.name}`;
  const label = node?.namespace === undefined ? node?.label ?? id : isOne ? node.name ?? node.label : node.label.slice(node.namespace.length + 1);
  const detail = node?.namespace !== undefined ? node.namespace : node?.isExternal === true ? "external" : "";
  return { ...base, label, detail, shape: shapeOf(node) };
}

function shapeOf(node: GraphNode | undefined): Shape {
  if (node?.type === "Workload") return "workload";
  if (node?.type === "Service") return "service";
  if (node?.isExternal === true) return "external";
  return node?.type === "Node" || node?.type === "HostProcess" ? "machine" : "other";
}
