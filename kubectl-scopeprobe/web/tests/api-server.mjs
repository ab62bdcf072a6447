// As much of an API server as a watch of Topology objects needs: it lists them, and sends changes to those that watch, also
// those that they have missed.
import { createServer } from "node:http";

const PATH = "/apis/scopeprobe.io/v1alpha1/topologies";

export class ApiServer {
  objects = new Map();
  version = 1;
  /** All changes since the start, for watches of an earlier version. */
  changes = [];
  watches = new Set();
  isDown = false;

  constructor() {
    this.server = createServer((request, response) => this.answer(request, response));
  }

  /** Starts, and returns a kubeconfig. */
  async start() {
    await new Promise((resolve) => this.server.listen(0, "127.0.0.1", resolve));
    const server = `http://127.0.0.1:${this.server.address().port}`;
    return JSON.stringify({
      apiVersion: "v1",
      kind: "Config",
      clusters: [{ name: "test", cluster: { server } }],
      users: [{ name: "test", user: {} }],
      contexts: [{ name: "test", context: { cluster: "test", user: "test" } }],
      "current-context": "test",
    });
  }

  stop() {
    this.server.closeAllConnections();
    this.server.close();
  }

  /** Ends all watches, and refuses requests until `isDown` is false again. */
  interrupt() {
    this.isDown = true;
    for (const watch of this.watches) watch.destroy();
    this.watches.clear();
  }

  /** Stores an object, and sends it to all watches. */
  put(object) {
    const key = `${object.metadata.namespace}/${object.metadata.name}`;
    const type = this.objects.has(key) ? "MODIFIED" : "ADDED";
    const stored = { ...object, metadata: { ...object.metadata, resourceVersion: String(++this.version) } };
    this.objects.set(key, stored);
    this.send(type, stored);
  }

  /** Removes an object, and sends that to all watches. */
  delete(namespace, name) {
    const object = this.objects.get(`${namespace}/${name}`);
    if (!object) throw new Error(`there is no object ${namespace}/${name}`);
    this.objects.delete(`${namespace}/${name}`);
    this.send("DELETED", { ...object, metadata: { ...object.metadata, resourceVersion: String(++this.version) } });
  }

  send(type, object) {
    const change = { version: this.version, line: `${JSON.stringify({ type, object })}\n` };
    this.changes.push(change);
    for (const watch of this.watches) watch.write(change.line);
  }

  answer(request, response) {
    const url = new URL(request.url, "http://localhost");
    if (url.pathname !== PATH) {
      response.writeHead(404, { "content-type": "application/json" });
      response.end(JSON.stringify({ kind: "Status", apiVersion: "v1", status: "Failure", code: 404, reason: "NotFound", message: "no such path" }));
      return;
    }
    if (this.isDown) {
      response.writeHead(503, { "content-type": "application/json" });
      response.end(JSON.stringify({ kind: "Status", apiVersion: "v1", status: "Failure", code: 503, reason: "ServiceUnavailable", message: "refused by the test" }));
      return;
    }
    response.writeHead(200, { "content-type": "application/json" });
    if (url.searchParams.get("watch") === "true" || url.searchParams.get("watch") === "1") {
      response.flushHeaders();
      const since = Number(url.searchParams.get("resourceVersion"));
      for (const { version, line } of this.changes) if (version > since) response.write(line);
      this.watches.add(response);
      response.on("close", () => this.watches.delete(response));
      return;
    }
    const metadata = { resourceVersion: String(this.version) };
    response.end(JSON.stringify({ apiVersion: "scopeprobe.io/v1alpha1", kind: "TopologyList", metadata, items: [...this.objects.values()] }));
  }
}
