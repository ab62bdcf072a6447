// Arranges many nodes in columns: clients on the left, servers on the right. Its time grows with the number of edges only.

import type { LayoutAnswer, LayoutRequest } from "./layout";

const COLUMN_GAP = 90;
const ROW_GAP = 18;
/** Width of the picture for each unit of its height. */
const RATIO = 1.6;
/** Number of times that columns are ordered by their neighbours. */
const SWEEPS = 4;

/** Returns positions for the nodes of a request. Lines between them are straight. */
export function arrangeInColumns({ number, nodes, edges }: LayoutRequest): LayoutAnswer {
  const neighbours = new Map(nodes.map(({ id }): [string, string[]] => [id, []]));
  const balance = new Map<string, number>();
  for (const [client, server] of edges) {
    neighbours.get(client)?.push(server);
    neighbours.get(server)?.push(client);
    balance.set(client, (balance.get(client) ?? 0) + 1);
    balance.set(server, (balance.get(server) ?? 0) - 1);
  }
  /** From 1 for a node that only calls to -1 for one that is only called. */
  const role = ({ id }: { id: string }) => (balance.get(id) ?? 0) / Math.max(neighbours.get(id)?.length ?? 0, 1);
  const order = [...nodes].sort((one, other) => role(other) - role(one) || compare(one.id, other.id));
  const columns = cut(order);
  const heights = new Map<string, number>();
  for (const column of columns) stack(column, heights);
  for (let sweep = 0; sweep < SWEEPS; sweep++) {
    for (const column of columns) {
      const wanted = new Map(column.map(({ id }) => [id, middle(id, neighbours, heights)]));
      column.sort((one, other) => (wanted.get(one.id) ?? 0) - (wanted.get(other.id) ?? 0) || compare(one.id, other.id));
      stack(column, heights);
    }
  }
  const positions: LayoutAnswer["positions"] = [];
  let left = 0;
  for (const column of columns) {
    const width = Math.max(...column.map((node) => node.width));
    for (const { id } of column) positions.push([id, left + width / 2, heights.get(id) ?? 0]);
    left += width + COLUMN_GAP;
  }
  return { number, positions, routes: [] };
}

type Boxes = LayoutRequest["nodes"];

function compare(one: string, other: string): number {
  return one < other ? -1 : one > other ? 1 : 0;
}

/** Cuts nodes into columns that have about the same height. */
function cut(order: Boxes): Boxes[] {
  const area = order.reduce((sum, { width, height }) => sum + (width + COLUMN_GAP) * (height + ROW_GAP), 0);
  const most = Math.sqrt(area / RATIO);
  const columns: Boxes[] = [];
  let height = Infinity;
  for (const node of order) {
    if (height >= most) {
      columns.push([]);
      height = 0;
    }
    columns.at(-1)?.push(node);
    height += node.height + ROW_GAP;
  }
  return columns;
}

/** Places the nodes of a column one below the other, around the height 0. */
function stack(column: Boxes, heights: Map<string, number>): void {
  let at = -column.reduce((sum, { height }) => sum + height + ROW_GAP, 0) / 2;
  for (const { id, height } of column) {
    heights.set(id, at + height / 2);
    at += height + ROW_GAP;
  }
}

/** Returns the mean height of the neighbours of a node, or its own if it has none. */
function middle(id: string, neighbours: Map<string, string[]>, heights: Map<string, number>): number {
  const near = neighbours.get(id) ?? [];
  if (near.length === 0) return heights.get(id) ?? 0;
  return near.reduce((sum, one) => sum + (heights.get(one) ?? 0), 0) / near.length;
}
