// The panel with all that is known of the selected nodes or edges, and how it is known.

import * as commands from "./commands";
import { announce, element, get } from "./dom";
import type { DrawnEdge, DrawnNode } from "./drawing";
import { bytes, way, type Graph, type GraphEdge } from "./model";

/** Maximum number of edges that the panel describes one by one. */
const MOST_EDGES = 20;

const SEEN = {
  Both: "Agents observed both ends.",
  Client: "An agent observed the client. The server is known by its address alone.",
  Server: "An agent observed the server. The client is known by its address alone.",
};

const IDENTITY = {
  Cgroup: "cgroup of its sockets (certain)",
  Netns: "network namespace (pod certain, container unknown)",
  Conntrack: "address that connection tracking recorded",
  IP: "owner of the address",
};

const METHODS: Record<string, string> = {
  EBPF: "eBPF", SockDiag: "sock_diag", Procfs: "/proc", Conntrack: "connection tracking",
};

export interface Actions {
  around(id: string): void;
  namespace(name: string): void;
  select(id: string): void;
}

export function nothing(): void {
  get("details-body").replaceChildren(
    element("p", { class: "muted" }, "Select a node, an edge or a row: how it is known, and what is not."),
  );
}

export function edges(graph: Graph, drawn: DrawnEdge): void {
  const listed = drawn.members.slice(0, MOST_EDGES);
  const more = drawn.members.length - listed.length;
  get("details-body").replaceChildren(
    ...listed.flatMap((id) => {
      const edge = graph.edges.get(id);
      return edge ? [edgeSection(graph, id, edge)] : [];
    }),
    ...(more > 0 ? [element("p", {}, `${more} more; the table lists all.`)] : []),
  );
}

/** Shows a node, and the edges of it that the picture shows. */
export function node(graph: Graph, drawn: DrawnNode, shown: string[], actions: Actions): void {
  const id = drawn.members[0] ?? "";
  const known = graph.nodes.get(id);
  const isGroup = drawn.id.startsWith("ns:") || drawn.id.startsWith("group:");
  const body: HTMLElement[] = [element("h3", {}, isGroup ? drawn.label : graph.label(id))];
  if (isGroup) {
    body.push(element("p", {}, `${drawn.shape === "namespace" ? "Namespace" : "Group"}: ${drawn.detail}`));
    if (drawn.shape === "namespace") {
      body.push(element("p", {}, button("Show its workloads", () => actions.namespace(drawn.label))));
    }
  } else {
    body.push(list([["Type", known?.isExternal === true ? `${known.type} (external)` : known?.type], ["Kind", known?.kind], ["Namespace", known?.namespace]]));
    const open = [button("Show its neighbourhood", () => actions.around(id))];
    const namespace = known?.namespace;
    if (namespace !== undefined) open.push(button("Show its namespace", () => actions.namespace(namespace)));
    body.push(element("p", {}, ...open));
    body.push(...gaps(graph, id).map((text) => element("p", { class: "caveat" }, `Incomplete: ${text}`)));
  }
  const members = new Set(drawn.members);
  const calls = (title: string, own: "client" | "server", other: "client" | "server") => {
    const found = shown.flatMap((edgeId): [string, GraphEdge][] => {
      const edge = graph.edges.get(edgeId);
      return edge && members.has(edge[own]) ? [[edgeId, edge]] : [];
    });
    const items = found.slice(0, MOST_EDGES).map(([edgeId, edge]) =>
      element("li", {}, button(`${graph.label(edge[other])} ${way(edge)}${trouble(edge)}`, () => actions.select(edgeId))));
    if (found.length > MOST_EDGES) items.push(element("li", {}, `${found.length - MOST_EDGES} more`));
    body.push(element("h4", {}, `${title} (${found.length})`), found.length > 0 ? element("ul", {}, ...items) : element("p", { class: "muted" }, "none is shown"));
  };
  calls("Calls", "client", "server");
  calls("Called by", "server", "client");
  if (!isGroup) body.push(...copyable(commands.explain(graph, commands.peerName(graph, id))), ...copyable(commands.blastRadius(graph, id)));
  get("details-body").replaceChildren(...body);
}

/** Returns the gaps of a workload. They name it without its kind: of workloads with the same name, one or more have the gap. */
function gaps(graph: Graph, id: string): string[] {
  const node = graph.nodes.get(id);
  if (node?.type !== "Workload") return [];
  const own = graph.caveats.filter((text) => text.split(": ", 1)[0] === `${node.namespace}/${node.name}`);
  const isOne = node.label === `${node.namespace}/${node.name}`;
  return isOne ? own : own.map((text) => `${text} (This workload, or another with its name.)`);
}

function trouble(edge: GraphEdge): string {
  return `${edge.failed > 0 ? ` ✕ ${edge.failed} failed` : ""}${edge.pending > 0 ? ` … ${edge.pending} pending` : ""}`;
}

function edgeSection(graph: Graph, id: string, edge: GraphEdge): HTMLElement {
  const isLowerBound = edge.withoutBytes > 0;
  const rows: [string, string | undefined][] = [
    ["Client", graph.label(edge.client)],
    ["Server", graph.label(edge.server)],
    ["Service", edge.service],
    ["Port", edge.port === undefined ? edge.protocol : `${edge.port} ${edge.protocol}`],
    ["Via", edge.via?.join(", ")],
    ["Opened", `${edge.opened}, ${edge.active} of them open now`],
    ["Failed", edge.failed === 0 ? "0" : `✕ ${edge.failed}${edge.lastFailed === undefined ? "" : `, last at ${edge.lastFailed}`}`],
    ["Pending", edge.pending === 0 ? "0" : `… ${edge.pending} without an answer`],
    ["Sent", bytes(edge.bytesSent, isLowerBound)],
    ["Received", bytes(edge.bytesReceived, isLowerBound)],
    ["Not all bytes", isLowerBound ? `of ${edge.withoutBytes} ${edge.withoutBytes === 1 ? "connection" : "connections"}` : undefined],
    ["Seen", edge.seen && SEEN[edge.seen]],
    ["Identity", edge.identity && IDENTITY[edge.identity]],
    ["Methods", edge.methods?.map((method) => METHODS[method] ?? method).join(", ")],
    ["Direction", edge.isInferred === true ? "a guess for some connections" : "observed"],
    ["First seen", edge.firstSeen],
    ["Last seen", edge.lastSeen === undefined ? undefined : `${edge.lastSeen} or later`],
    ["Identifier", id],
  ];
  const title = element("h3", {}, `${graph.label(edge.client)} → ${edge.service ?? `${graph.label(edge.server)} ${way(edge)}`}`);
  return element("section", {}, title, list(rows), ...copyable(commands.explain(graph, id)));
}

function list(rows: [string, string | undefined][]): HTMLElement {
  const known = rows.flatMap(([name, value]) => (value === undefined || value === "" ? [] : [element("dt", {}, name), element("dd", {}, value)]));
  return element("dl", {}, ...known);
}

function button(text: string, click: () => void): HTMLElement {
  return element("button", { type: "button", click }, text);
}

function copyable(command: string): HTMLElement[] {
  return [element("pre", { tabindex: "0", "aria-label": "Command" }, command), button("Copy as kubectl", () => void copy(command))];
}

export async function copy(text: string): Promise<void> {
  try {
    await navigator.clipboard.writeText(text);
    announce(`Copied: ${text}`);
  } catch {
    announce(`The browser does not allow copying. The text is: ${text}`);
  }
}
