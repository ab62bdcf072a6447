// A worker that arranges nodes in layers, and many in columns. The same nodes and edges have the same positions.

import { Graph, layout } from "@dagrejs/dagre";

import { arrangeInColumns } from "./columns";

/** Maximum numbers of nodes and edges in layers: the time grows with edges that cross layers, to minutes at 300 nodes. */
const MOST_LAYERED = { nodes: 150, edges: 200 };

export interface LayoutRequest {
  number: number;
  nodes: { id: string; width: number; height: number }[];
  edges: [string, string][];
}

export interface LayoutAnswer {
  number: number;
  positions: [string, number, number][];
  /** Points between the ends of each edge, by which it passes nodes. */
  routes: [string, { x: number; y: number }[]][];
}

self.addEventListener("message", ({ data }: MessageEvent<LayoutRequest>) => {
  const isCrowded = data.nodes.length > MOST_LAYERED.nodes || data.edges.length > MOST_LAYERED.edges;
  self.postMessage(isCrowded ? arrangeInColumns(data) : arrangeInLayers(data));
});

function arrangeInLayers({ number, nodes, edges }: LayoutRequest): LayoutAnswer {
  const graph = new Graph();
  graph.setGraph({ rankdir: "LR", nodesep: 18, ranksep: 90, edgesep: 18, marginx: 20, marginy: 20, ranker: "network-simplex" });
  graph.setDefaultEdgeLabel(() => ({}));
  for (const { id, width, height } of nodes) graph.setNode(id, { width, height });
  for (const [from, to] of edges) graph.setEdge(from, to, {});
  layout(graph);
  const positions = nodes.map(({ id }): [string, number, number] => {
    const { x, y } = graph.node(id) as { x: number; y: number };
    return [id, x, y];
  });
  const routes = edges.map(([from, to]): LayoutAnswer["routes"][number] => {
    const { points } = graph.edge(from, to) as { points: { x: number; y: number }[] };
    // Between neighbouring layers, the line is straight: it passes no node.
    return [`${from}>${to}`, points.length > 3 ? points.slice(1, -1) : []];
  });
  return { number, positions, routes };
}
