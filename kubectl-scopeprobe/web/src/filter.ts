// Filter expressions: words that all have to match, such as `shop is:failed port:6379 -udp`.

import type { Graph, GraphEdge } from "./model";

export type Condition = (edge: GraphEdge, id: string) => boolean;

/** A filter, or the words of it that are wrong. */
export interface Filter {
  keeps: Condition;
  errors: string[];
}

const STATES: Record<string, (edge: GraphEdge) => boolean> = {
  failed: (edge) => edge.failed > 0,
  pending: (edge) => edge.pending > 0,
  active: (edge) => edge.active > 0,
  inferred: (edge) => edge.isInferred === true,
  incomplete: (edge) => edge.withoutBytes > 0 || (edge.seen !== undefined && edge.seen !== "Both"),
};

const UNITS: Record<string, number> = { s: 1e3, m: 60e3, h: 3600e3, d: 86_400e3 };

/** Reads an expression. A word that is wrong is reported, and selects nothing away. */
export function read(text: string, graph: Graph, now: number): Filter {
  const errors: string[] = [];
  const conditions: Condition[] = [];
  for (const word of text.trim().split(/\s+/).filter((part) => part !== "")) {
    const isNegated = word.startsWith("-") && word.length > 1;
    const condition = one(isNegated ? word.slice(1) : word, graph, now);
    if (typeof condition === "string") errors.push(condition);
    else conditions.push(isNegated ? (edge, id) => !condition(edge, id) : condition);
  }
  return { errors, keeps: (edge, id) => conditions.every((condition) => condition(edge, id)) };
}

function one(word: string, graph: Graph, now: number): Condition | string {
  const [, key, value] = /^([a-z]+):(.+)$/i.exec(word) ?? [];
  const ends = (edge: GraphEdge) => [graph.nodes.get(edge.client), graph.nodes.get(edge.server)];
  if (key === undefined || value === undefined) return text(word, graph);
  const wanted = value.toLowerCase();
  switch (key.toLowerCase()) {
    case "ns":
      return (edge) => ends(edge).some((node) => node?.namespace?.toLowerCase() === wanted);
    case "kind":
      return (edge) => ends(edge).some((node) => (node?.kind ?? node?.type)?.toLowerCase() === wanted);
    case "from":
      return (edge) => graph.label(edge.client).toLowerCase().includes(wanted);
    case "to":
      return (edge) => `${graph.label(edge.server)} ${edge.service ?? ""}`.toLowerCase().includes(wanted);
    case "port":
      return /^\d+$/.test(value) ? (edge) => edge.port === Number(value) : `port:${value}: not a number`;
    case "via":
      return (edge) => edge.via?.some((proxy) => proxy.toLowerCase().includes(wanted)) ?? false;
    case "new": {
      const [, count, unit] = /^(\d+)([smhd])$/.exec(wanted) ?? [];
      if (count === undefined || unit === undefined) return `new:${value}: expected a time such as new:24h`;
      const since = now - Number(count) * (UNITS[unit] ?? 0);
      return (edge) => edge.firstSeen !== undefined && Date.parse(edge.firstSeen) >= since;
    }
    case "is": {
      if (wanted === "external") return (edge) => ends(edge).some((node) => node?.isExternal === true);
      if (wanted === "udp" || wanted === "tcp") return (edge) => edge.protocol.toLowerCase() === wanted;
      const state = Object.hasOwn(STATES, wanted) ? STATES[wanted] : undefined;
      return state ?? `is:${value}: expected ${[...Object.keys(STATES), "external", "tcp", "udp"].join(", ")}`;
    }
    default:
      return text(word, graph);
  }
}

function text(word: string, graph: Graph): Condition {
  const wanted = word.toLowerCase();
  return (edge, id) =>
    [graph.label(edge.client), graph.label(edge.server), edge.service ?? "", edge.protocol, id].some((part) =>
      part.toLowerCase().includes(wanted),
    );
}
