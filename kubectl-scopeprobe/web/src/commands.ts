// Commands that show the same on a terminal.

import type { Graph } from "./model";
import type { Place } from "./place";

function quoted(word: string): string {
  return /^[\w@%+=:,./-]+$/.test(word) ? word : `'${word.replaceAll("'", `'\\''`)}'`;
}

function command(words: string[], source: string[]): string {
  return ["kubectl", "scopeprobe", ...words, ...source].map(quoted).join(" ");
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
  return command(["explain", what], graph.arguments);
}

export function blastRadius(graph: Graph, node: string): string {
  return command(["blast-radius", peerName(graph, node)], graph.arguments);
}

/** Returns the command for a place. Filters that it does not have are left out: it prints these edges, and maybe more. */
export function table(graph: Graph, place: Place): string {
  const words = ["table"];
  if (place.level === "around") words.push("--around", peerName(graph, place.around), "--hops", String(place.hops));
  if (place.level === "namespaces") words.push("--namespace-level");
  const isNamespace = place.level === "workloads" && place.namespace !== "";
  return command(words.concat(conditions(place.filter)), isNamespace ? ofNamespace(graph.arguments, place.namespace) : graph.arguments);
}

/** Returns the options for the words of a filter. The plugin takes each option once. */
function conditions(filter: string): string[] {
  const options = new Map<string, string[]>();
  const add = (option: string, ...value: string[]) => options.has(option) || options.set(option, value);
  for (const word of filter.toLowerCase().split(/\s+/)) {
    if (word === "is:failed") add("--failed");
    if (word === "is:external") add("--external");
    if (word === "is:udp" || word === "is:tcp") add("--protocol", word.slice(3));
    if (/^port:\d+$/.test(word) && Number(word.slice(5)) <= 65_535) add("--port", String(Number(word.slice(5))));
    if (/^new:\d{1,9}[smhd]$/.test(word)) add("--new-since", word.slice(4));
  }
  return [...options].flat(2);
}

/** Returns the arguments that select the edges of a namespace: of all objects, or of files. Others select one already. */
function ofNamespace(given: string[], namespace: string): string[] {
  const isOfAll = given.includes("--all-namespaces");
  if (!isOfAll && (!given.includes("--file") || given.includes("--namespace"))) return given;
  return ["--namespace", namespace, ...given.filter((word) => word !== "--all-namespaces")];
}
