// The map as the server sends it, and the changes to it.

export interface GraphNode {
  label: string;
  type?: string;
  namespace?: string;
  kind?: string;
  name?: string;
  isExternal?: boolean;
}

export interface GraphEdge {
  client: string;
  server: string;
  service?: string;
  port?: number;
  protocol: string;
  opened: number;
  active: number;
  failed: number;
  pending: number;
  bytesSent?: number;
  bytesReceived?: number;
  withoutBytes: number;
  seen?: "Both" | "Client" | "Server";
  identity?: "Cgroup" | "Netns" | "Conntrack" | "IP";
  methods?: string[];
  isInferred?: boolean;
  via?: string[];
  firstSeen?: string;
  lastSeen?: string;
  lastFailed?: string;
}

export interface Snapshot {
  revision: number;
  isLive: boolean;
  arguments: string[];
  nodes: Record<string, GraphNode>;
  edges: Record<string, GraphEdge>;
  caveats: string[];
  problem: string;
}

export interface Change {
  revision: number;
  nodes?: Record<string, GraphNode>;
  edges?: Record<string, GraphEdge>;
  removedNodes?: string[];
  removedEdges?: string[];
  caveats?: string[];
  problem?: string;
}

export class Graph {
  readonly nodes: Map<string, GraphNode>;
  readonly edges: Map<string, GraphEdge>;
  caveats: string[];
  problem: string;
  revision: number;
  readonly isLive: boolean;
  readonly arguments: string[];

  constructor(snapshot: Snapshot) {
    this.nodes = new Map(Object.entries(snapshot.nodes));
    this.edges = new Map(Object.entries(snapshot.edges));
    this.caveats = snapshot.caveats;
    this.problem = snapshot.problem;
    this.revision = snapshot.revision;
    this.isLive = snapshot.isLive;
    this.arguments = snapshot.arguments;
  }

  apply(change: Change): void {
    for (const id of change.removedEdges ?? []) this.edges.delete(id);
    for (const id of change.removedNodes ?? []) this.nodes.delete(id);
    for (const [id, node] of Object.entries(change.nodes ?? {})) this.nodes.set(id, node);
    for (const [id, edge] of Object.entries(change.edges ?? {})) this.edges.set(id, edge);
    this.caveats = change.caveats ?? this.caveats;
    this.problem = change.problem ?? this.problem;
    this.revision = change.revision;
  }

  label(id: string): string {
    return this.nodes.get(id)?.label ?? id;
  }
}

/** Returns the Service or port to which an edge leads, short. */
export function way(edge: GraphEdge): string {
  const service = edge.service?.slice(edge.service.indexOf("/") + 1);
  const port = edge.port !== undefined && !service?.endsWith(`:${edge.port}`) ? `:${edge.port}` : undefined;
  const protocol = edge.protocol === "TCP" ? undefined : edge.protocol;
  return [service, port, protocol].filter((part) => part !== undefined).join(" ");
}

/** Returns a number of bytes, rounded down: `≥` marks a lower bound, `?` an unknown number. */
export function bytes(count: number | undefined, isLowerBound: boolean): string {
  if (count === undefined) return "?";
  const units = ["B", "KiB", "MiB", "GiB", "TiB", "PiB"];
  let [value, unit] = [count, 0];
  while (value >= 1024 && unit < units.length - 1) [value, unit] = [value / 1024, unit + 1];
  const rounded = unit === 0 || value >= 10 ? Math.floor(value) : Math.floor(value * 10) / 10;
  return `${isLowerBound ? "≥" : ""}${rounded} ${units[unit]}`;
}
