// A worker that arranges nodes in layers. The same nodes and edges have the same positions.

import { Graph, layout } from "@dagrejs/dagre";

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

self.addEventListener("message", (event: MessageEvent<LayoutRequest>) => {
  const { number, nodes, edges } = event.data;
  const graph = new Graph();
  // Its exact ranking takes minutes on a thousand nodes.
  const ranker = nodes.length > 150 ? "longest-path" : "network-simplex";
  graph.setGraph({ rankdir: "LR", nodesep: 18, ranksep: 90, edgesep: 18, marginx: 20, marginy: 20, ranker });
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
  const answer: LayoutAnswer = { number, positions, routes };
  self.postMessage(answer);
});
