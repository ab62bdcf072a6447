// The table of the selected edges: all that the picture shows, and the way to it by keyboard and screen reader.

import { element, get } from "./dom";
import { bytes, way, type Graph, type GraphEdge } from "./model";

/** Maximum number of rows that are listed unasked. */
const MOST_ROWS = 500;
/** Number of rows that are made before the picture; the others follow. */
const FIRST_ROWS = 50;
const FURTHER_ROWS_MILLISECONDS = 1000;

interface Column {
  name: string;
  isNumber?: boolean;
  value: (edge: GraphEdge, graph: Graph) => string | number;
  text?: (edge: GraphEdge) => string;
}

const COLUMNS: Column[] = [
  { name: "Client", value: (edge, graph) => graph.label(edge.client) },
  { name: "Server", value: (edge, graph) => graph.label(edge.server) },
  { name: "Port", value: (edge) => way(edge) },
  { name: "Opened", isNumber: true, value: (edge) => edge.opened },
  { name: "Open now", isNumber: true, value: (edge) => edge.active },
  { name: "Failed", isNumber: true, value: (edge) => edge.failed },
  { name: "Pending", isNumber: true, value: (edge) => edge.pending },
  { name: "Sent", isNumber: true, value: (edge) => edge.bytesSent ?? -1, text: (edge) => bytes(edge.bytesSent, edge.withoutBytes > 0) },
  { name: "Received", isNumber: true, value: (edge) => edge.bytesReceived ?? -1, text: (edge) => bytes(edge.bytesReceived, edge.withoutBytes > 0) },
  { name: "Seen", value: (edge) => edge.seen ?? "" },
];

export class Table {
  private column = 0;
  private isDescending = false;
  private isWhole = false;
  /** Timer of the rows that follow. */
  private further: number | undefined;
  private last: { graph: Graph; shown: string[]; selected: Set<string> } | undefined;

  constructor(
    private readonly openNode: (id: string) => void,
    private readonly openEdge: (id: string) => void,
  ) {
    get("columns").append(
      ...COLUMNS.map((column, index) =>
        element("th", { scope: "col", class: column.isNumber === true ? "number" : "" },
          element("button", { type: "button", click: () => this.sort(index) }, column.name)),
      ),
      element("th", { scope: "col" }, element("span", { class: "hidden" }, "Details")),
    );
  }

  show(graph: Graph, shown: string[], selected: Set<string>): void {
    for (const [index, header] of [...get("columns").children].entries()) {
      if (index < COLUMNS.length) header.setAttribute("aria-sort", index !== this.column ? "none" : this.isDescending ? "descending" : "ascending");
    }
    const focus = document.activeElement?.getAttribute("data-key") ?? "";
    const rows = this.sorted(graph, shown);
    const listed = this.isWhole ? rows : rows.slice(0, MOST_ROWS);
    const make = (rows: [string, GraphEdge][]) => rows.map(([id, edge]) => this.row(graph, id, edge, selected.has(id)));
    // Only the first map waits for its further rows: changes may come without pause.
    const first = this.last === undefined ? FIRST_ROWS : listed.length;
    this.last = { graph, shown, selected };
    clearTimeout(this.further);
    get("rows").replaceChildren(...make(listed.slice(0, first)));
    if (listed.length > first) this.further = setTimeout(() => get("rows").append(...make(listed.slice(first))), FURTHER_ROWS_MILLISECONDS);
    if (focus !== "") document.querySelector<HTMLElement>(`[data-key="${CSS.escape(focus)}"]`)?.focus({ preventScroll: true });
    get("count").textContent =
      listed.length < rows.length ? `${listed.length} of ${rows.length} edges are listed.` : `${rows.length} ${rows.length === 1 ? "edge" : "edges"}`;
    get("all-rows").hidden = listed.length === rows.length;
  }

  showAll(): void {
    this.isWhole = true;
    this.again();
  }

  private again(): void {
    if (this.last) this.show(this.last.graph, this.last.shown, this.last.selected);
  }

  private sort(column: number): void {
    this.isDescending = column === this.column ? !this.isDescending : COLUMNS[column]?.isNumber === true;
    this.column = column;
    this.again();
  }

  private sorted(graph: Graph, shown: string[]): [string, GraphEdge][] {
    const column = COLUMNS[this.column];
    const rows = shown.flatMap((id): [string, GraphEdge, string | number][] => {
      const edge = graph.edges.get(id);
      return edge && column ? [[id, edge, column.value(edge, graph)]] : [];
    });
    const sign = this.isDescending ? -1 : 1;
    rows.sort(([one, , a], [other, , b]) => (a < b ? -sign : a > b ? sign : one < other ? -1 : 1));
    return rows.map(([id, edge]) => [id, edge]);
  }

  private row(graph: Graph, id: string, edge: GraphEdge, isSelected: boolean): HTMLElement {
    const node = (end: string, key: string) =>
      element("button", { type: "button", class: "link", "data-key": `${key} ${id}`, click: () => this.openNode(end) }, graph.label(end));
    const trouble = edge.failed > 0 ? "failed" : edge.pending > 0 ? "pending" : "";
    const cells = COLUMNS.map((column, index) => {
      if (index === 0) return element("th", { scope: "row" }, node(edge.client, "client"));
      if (index === 1) return element("td", {}, node(edge.server, "server"));
      const text = column.text?.(edge) ?? String(column.value(edge, graph));
      const isMarked = (column.name === "Failed" && edge.failed > 0) || (column.name === "Pending" && edge.pending > 0);
      const mark = isMarked ? `${column.name === "Failed" ? "✕" : "…"} ` : "";
      const direction = column.name === "Port" && edge.isInferred === true ? " ~" : "";
      return element("td", { class: `${column.isNumber === true ? "number" : ""} ${isMarked ? trouble : ""}` }, mark + text + direction);
    });
    const name = `Details of ${graph.label(edge.client)} to ${graph.label(edge.server)} ${way(edge)}`;
    const details = element("button", { type: "button", "data-key": `edge ${id}`, "aria-label": name, click: () => this.openEdge(id) }, "Details");
    return element("tr", { class: isSelected ? "selected" : "", "data-edge": id }, ...cells, element("td", {}, details));
  }
}
