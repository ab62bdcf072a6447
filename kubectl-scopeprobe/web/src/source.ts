// Reads the map from the server, and follows its changes.

import { Graph, type Change, type Snapshot } from "./model";

const RETRY_MILLISECONDS = 2000;

/** Follows the map. Calls back with each state of it, and with a problem while the server does not answer. */
export async function follow(changed: (graph: Graph) => void, interrupted: (problem: string) => void): Promise<void> {
  let graph: Graph;
  try {
    const response = await fetch("api/graph");
    if (!response.ok) throw new Error(`status ${response.status}`);
    graph = new Graph((await response.json()) as Snapshot);
  } catch (error) {
    interrupted(`The plugin does not answer (${error instanceof Error ? error.message : String(error)}). Run it again, and use the address that it prints.`);
    setTimeout(() => void follow(changed, interrupted), RETRY_MILLISECONDS);
    return;
  }
  interrupted("");
  changed(graph);
  // After an interruption, the browser names the last event that it has received.
  const events = new EventSource(`api/events?since=${graph.revision}`);
  const again = () => {
    events.close();
    void follow(changed, interrupted);
  };
  events.addEventListener("open", () => interrupted(""));
  events.addEventListener("delta", (event: MessageEvent<string>) => {
    graph.apply(JSON.parse(event.data) as Change);
    changed(graph);
  });
  events.addEventListener("reset", again);
  events.addEventListener("error", () => {
    interrupted("The connection to the plugin is interrupted; the page tries again.");
    if (events.readyState === EventSource.CLOSED) setTimeout(again, RETRY_MILLISECONDS);
  });
}
