// The place in the map that the address of the page names: level, filter and selection.

export type Level = "namespaces" | "workloads" | "around";

export interface Place {
  level: Level;
  /** Namespace of the level of workloads; empty for all. */
  namespace: string;
  /** Node of which the neighbourhood is shown. */
  around: string;
  hops: number;
  filter: string;
  /** Selected drawn node or edge. */
  selected: string;
  /** True if more nodes than usual may be drawn. */
  isWhole: boolean;
}

export function read(hash: string): Place {
  const values = new URLSearchParams(hash.replace(/^#/, ""));
  const around = values.get("around") ?? "";
  const namespace = values.get("in") ?? "";
  const level: Level = around !== "" ? "around" : values.has("in") ? "workloads" : "namespaces";
  const hops = Math.min(Math.max(Number(values.get("hops") ?? "1") || 1, 1), 5);
  return {
    level,
    namespace,
    around,
    hops,
    filter: values.get("filter") ?? "",
    selected: values.get("selected") ?? "",
    isWhole: values.get("whole") === "1",
  };
}

export function write(place: Place): string {
  const values = new URLSearchParams();
  if (place.level === "workloads") values.set("in", place.namespace);
  if (place.level === "around") values.set("around", place.around);
  if (place.level === "around" && place.hops !== 1) values.set("hops", String(place.hops));
  if (place.filter !== "") values.set("filter", place.filter);
  if (place.selected !== "") values.set("selected", place.selected);
  if (place.isWhole) values.set("whole", "1");
  return `#${values.toString()}`;
}

/** Returns the part of a place on which the positions of nodes depend. */
export function layoutKey(place: Place): string {
  return `${place.level} ${place.namespace} ${place.around}`;
}
