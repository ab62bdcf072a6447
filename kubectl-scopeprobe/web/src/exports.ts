// Files and texts of what is shown.

import type { Drawing } from "./drawing";
import type { Graph } from "./model";
import { shortened, type Box } from "./picture";

/** Returns the selected edges as comma-separated values, in the columns of `graph -o csv`. */
export function csv(graph: Graph, shown: string[]): string {
  const header =
    "id,client,server,service,port,protocol,opened,active,failed,pending,bytes_sent,bytes_received,without_bytes,seen,inferred,first_seen,last_seen,last_failed";
  const rows = shown.flatMap((id) => {
    const edge = graph.edges.get(id);
    if (!edge) return [];
    const cells = [
      id, graph.label(edge.client), graph.label(edge.server), edge.service, edge.port, edge.protocol, edge.opened, edge.active,
      edge.failed, edge.pending, edge.bytesSent, edge.bytesReceived, edge.withoutBytes, edge.seen, edge.isInferred ?? false,
      edge.firstSeen, edge.lastSeen, edge.lastFailed,
    ];
    return [cells.map((value) => cell(String(value ?? ""))).join(",")];
  });
  return `${[header, ...rows].join("\r\n")}\r\n`;
}

/** A spreadsheet would take some first characters for a formula. */
function cell(text: string): string {
  const safe = /^[=+\-@\t\r]/.test(text) ? `'${text}` : text;
  return /[",\r\n]/.test(safe) ? `"${safe.replaceAll('"', '""')}"` : safe;
}

export function mermaid(drawing: Drawing): string {
  const number = new Map(drawing.nodes.map(({ id }, index) => [id, `n${index}`]));
  const text = (label: string) => `"${label.replaceAll(/[&"<>#`\\]/g, (one) => `#${one.charCodeAt(0)};`).replaceAll("\n", ", ")}"`;
  const nodes = drawing.nodes.map((node) => {
    const label = text([node.label, node.detail].filter((part) => part !== "").join("\n"));
    return `  ${number.get(node.id)}${node.shape === "external" ? `([${label}])` : `[${label}]`}`;
  });
  const edges = drawing.edges.map((edge) => {
    const arrow = edge.failed > 0 || edge.pending > 0 ? "-.->" : "-->";
    const label = edge.label === "" ? "" : `|${text(edge.label)}|`;
    return `  ${number.get(edge.source)} ${arrow}${label} ${number.get(edge.target)}`;
  });
  return ["flowchart LR", ...nodes, ...edges, ""].join("\n");
}

/** Returns the picture as SVG, for print: dark on white. */
export function svg(drawing: Drawing, boxes: Map<string, Box>): string {
  const all = [...boxes.values()];
  const [left, top] = [Math.min(0, ...all.map((box) => box.x - box.width / 2)) - 40, Math.min(0, ...all.map((box) => box.y - box.height / 2)) - 40];
  const [right, bottom] = [Math.max(0, ...all.map((box) => box.x + box.width / 2)) + 40, Math.max(0, ...all.map((box) => box.y + box.height / 2)) + 40];
  const parts: string[] = [];
  for (const edge of drawing.edges) {
    const [from, to] = [boxes.get(edge.source), boxes.get(edge.target)];
    if (!from || !to) continue;
    const state = edge.failed > 0 ? "failed" : edge.pending > 0 ? "pending" : "";
    const path = from === to ? loop(from) : line(from, to);
    parts.push(`<path class="edge ${state}" d="${path.d}" marker-end="url(#arrow)"/>`, label(edge.label, path, "small"));
  }
  for (const node of drawing.nodes) {
    const box = boxes.get(node.id);
    if (!box) continue;
    const [x, y] = [box.x - box.width / 2, box.y - box.height / 2];
    const round = node.shape === "external" ? box.height / 2 : 6;
    parts.push(
      `<rect class="node" x="${x}" y="${y}" width="${box.width}" height="${box.height}" rx="${round}"/>`,
      label([node.label, node.detail].filter((part) => part !== "").map(shortened).join("\n"), box, ""),
    );
  }
  const style =
    ".node{fill:#fff;stroke:#334155;stroke-width:1.5}.edge{fill:none;stroke:#64748b;stroke-width:1.5}.failed{stroke:#b91c1c;stroke-dasharray:7 4}" +
    ".pending{stroke:#92400e;stroke-dasharray:2 3}text{font:13px sans-serif;text-anchor:middle;fill:#0f172a}.small{font-size:11px;paint-order:stroke;stroke:#fff;stroke-width:4px}";
  return (
    `<svg xmlns="http://www.w3.org/2000/svg" viewBox="${left} ${top} ${right - left} ${bottom - top}" width="${right - left}" height="${bottom - top}">` +
    `<style>${style}</style><defs><marker id="arrow" viewBox="0 0 10 10" refX="9" refY="5" markerWidth="7" markerHeight="7" orient="auto">` +
    `<path d="M0 0L10 5L0 10z" fill="#475569"/></marker></defs><rect x="${left}" y="${top}" width="100%" height="100%" fill="#fff"/>${parts.join("")}</svg>\n`
  );
}

function line(from: Box, to: Box) {
  const [a, b] = [border(from, to), border(to, from)];
  return { d: `M${a.x} ${a.y}L${b.x} ${b.y}`, x: (a.x + b.x) / 2, y: (a.y + b.y) / 2 };
}

function loop(box: Box) {
  const [x, y] = [box.x, box.y - box.height / 2];
  return { d: `M${x - 16} ${y}C${x - 40} ${y - 44} ${x + 40} ${y - 44} ${x + 16} ${y}`, x, y: y - 34 };
}

/** Returns the point of a box's border towards another box. */
function border(box: Box, to: Box) {
  const [dx, dy] = [to.x - box.x, to.y - box.y];
  const scale = Math.min(box.width / 2 / Math.max(Math.abs(dx), 1e-6), box.height / 2 / Math.max(Math.abs(dy), 1e-6));
  return { x: Math.round(box.x + dx * scale), y: Math.round(box.y + dy * scale) };
}

function label(text: string, at: { x: number; y: number }, style: string): string {
  const lines = text.split("\n");
  const first = at.y + 4 - (lines.length - 1) * 8;
  return lines.map((one, index) => `<text class="${style}" x="${at.x}" y="${first + index * 16}">${escaped(one)}</text>`).join("");
}

function escaped(text: string): string {
  return text.replaceAll(/[&<>"']/g, (one) => `&#${one.charCodeAt(0)};`);
}

export function download(name: string, content: Blob): void {
  const link = document.createElement("a");
  link.href = URL.createObjectURL(content);
  link.download = name;
  link.click();
  setTimeout(() => URL.revokeObjectURL(link.href), 10_000);
}
