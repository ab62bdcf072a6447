// Commands that show the same on a terminal.

import type { Graph } from "./model";
import type { Place } from "./place";

function quoted(word: string): string {
  return /^[\w@%+=:,./-]+$/.test(word) ? word : `'${word.replaceAll("'", `'\\''`)}'`;
}

function command(graph: Graph, words: string[]): string {
  return ["kubectl", "scopeprobe", ...words, ...graph.arguments].map(quoted).join(" ");
}

/** Returns the name by which the plugin finds a node. */
export function peerName(graph: Graph, id: string): string {
  const node = graph.nodes.get(id);
  if (node?.namespace !== undefined && node.name !== undefined) {
    return `${node.namespace}/${node.kind ?? node.type ?? ""}/${node.name}`;
  }
  return node?.label ?? id;
}

export function explain(graph: Graph, what: string): string {
  return command(graph, ["explain", what]);
}

export function blastRadius(graph: Graph, node: string): string {
  return command(graph, ["blast-radius", peerName(graph, node)]);
}

/** Returns the command for a place. Filters that it does not have are left out. */
export function table(graph: Graph, place: Place): string {
  const words = ["table"];
  if (place.level === "around") words.push("--around", peerName(graph, place.around), "--hops", String(place.hops));
  if (place.level === "namespaces") words.push("--namespace-level");
  for (const word of place.filter.split(/\s+/)) {
    if (word === "is:failed") words.push("--failed");
    if (word === "is:external") words.push("--external");
    if (word === "is:udp" || word === "is:tcp") words.push("--protocol", word.slice(3));
    if (/^port:\d+$/.test(word)) words.push("--port", word.slice(5));
    if (/^new:\d+[smhd]$/.test(word)) words.push("--new-since", word.slice(4));
  }
  return command(graph, words);
}
