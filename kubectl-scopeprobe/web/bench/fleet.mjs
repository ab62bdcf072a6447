// Topology objects of an invented cluster: the same for the same numbers.

/** Maximum number of edges for each direction that an object lists, as by default. */
const MOST_LISTED = 100;

const AREAS = ["orders", "payments", "catalog", "search", "identity", "shipping", "media", "reports", "partners", "mobile"];
const TASKS = ["gateway", "worker", "store", "scheduler", "indexer", "notifier", "frontend", "importer", "cache", "ledger"];

/** Returns a generator of random numbers from 0 to 1 (mulberry32). */
function randomNumbers(seed) {
  let state = seed;
  return () => {
    state = (state + 0x6d2b79f5) | 0;
    let mixed = Math.imul(state ^ (state >>> 15), 1 | state);
    mixed = (mixed + Math.imul(mixed ^ (mixed >>> 7), 61 | mixed)) ^ mixed;
    return ((mixed ^ (mixed >>> 14)) >>> 0) / 2 ** 32;
  };
}

/** Returns workloads in namespaces of which few are large. */
function makeWorkloads(count, namespaces) {
  const weights = Array.from({ length: namespaces }, (_, rank) => 1 / (rank + 3));
  const sum = weights.reduce((total, weight) => total + weight, 0);
  const sizes = weights.map((weight) => Math.max(2, Math.floor((weight / sum) * count)));
  sizes[0] += count - sizes.reduce((total, size) => total + size, 0);
  return sizes.flatMap((size, rank) => {
    const namespace = `${AREAS[rank % AREAS.length]}-team-${rank}`;
    return Array.from({ length: size }, (_, number) => {
      const kind = number % 9 === 8 ? "StatefulSet" : number % 25 === 24 ? "DaemonSet" : "Deployment";
      const name = `${AREAS[(rank + number) % AREAS.length]}-${TASKS[number % TASKS.length]}-${number}`;
      return { type: "Workload", apiVersion: "apps/v1", kind, namespace, name };
    });
  });
}

/** Returns that many calls: most of them within a namespace, many to DNS, some to hubs and to external peers. */
function makeCalls(workloads, count, random) {
  const any = (list) => list[Math.floor(random() * list.length)];
  const dns = { type: "Service", namespace: "kube-system", name: "kube-dns" };
  const externals = Array.from({ length: 200 }, (_, number) => ({ type: "DNSName", name: `api-${number}.partner.example` }));
  const hubs = Array.from({ length: 60 }, () => any(workloads));
  const byNamespace = new Map(workloads.map(({ namespace }) => [namespace, []]));
  for (const workload of workloads) byNamespace.get(workload.namespace).push(workload);
  const calls = new Map();
  const add = (client, server, port) => {
    const key = `${client.namespace}/${client.name} ${server.namespace}/${server.name} ${port}`;
    if (client !== server && calls.size < count) calls.set(key, { client, server, port });
  };
  // Each has one edge at least.
  for (const client of workloads) {
    const neighbours = byNamespace.get(client.namespace);
    add(client, neighbours[Math.floor(random() ** 2 * neighbours.length)], 8080);
    if (random() < 0.5) add(client, dns, 53);
    if (random() < 0.15) add(hubs[0], client, 9090);
  }
  while (calls.size < count) {
    const client = any(workloads);
    const chance = random();
    const neighbours = byNamespace.get(client.namespace);
    // Some workloads of a namespace have many callers.
    if (chance < 0.72) add(client, neighbours[Math.floor(random() ** 2 * neighbours.length)], any([8080, 8443, 5432, 6379]));
    else if (chance < 0.92) add(client, any(hubs), 8443);
    else add(client, any(externals), 443);
  }
  return [...calls.values()];
}

function makeEdge({ client, server, port }, index, isEgress) {
  const isTrouble = index % 97 === 0;
  const served = server.type === "Workload";
  return {
    id: (index + 1).toString(16).padStart(16, "0"),
    peer: isEgress ? server : client,
    ...(served ? { service: { namespace: server.namespace, name: server.name, port } } : {}),
    port,
    protocol: port === 53 ? "UDP" : "TCP",
    opened: (index * 7919) % 100_000,
    active: index % 7,
    failed: isTrouble ? 3 : 0,
    bytesSent: 40_000 + index,
    bytesReceived: 9_000_000 + index,
    firstSeen: "2026-05-01T10:00:00Z",
    lastSeen: "2026-05-02T10:00:00Z",
    ...(isTrouble ? { lastFailed: "2026-05-02T10:00:00Z" } : {}),
    seen: served ? "Both" : "Client",
    identity: served ? "Cgroup" : "IP",
    methods: ["EBPF"],
    direction: "Observed",
  };
}

/** Workloads and calls of a cluster, and the objects that list them. */
export class Fleet {
  constructor({ workloads = 5000, edges = 20_000, namespaces = 100, seed = 1 } = {}) {
    this.workloads = makeWorkloads(workloads, namespaces);
    this.calls = makeCalls(this.workloads, edges, randomNumbers(seed));
    this.egress = new Map(this.workloads.map((workload) => [workload, []]));
    this.ingress = new Map(this.workloads.map((workload) => [workload, []]));
    this.calls.forEach((call, index) => this.list(call, index));
  }

  list(call, index) {
    this.egress.get(call.client).push(makeEdge(call, index, true));
    this.ingress.get(call.server)?.push(makeEdge(call, index, false));
  }

  /** Returns the object of a workload. */
  object(workload) {
    const { apiVersion, kind, namespace, name } = workload;
    const [egress, ingress] = [this.egress.get(workload), this.ingress.get(workload)];
    const left = Math.max(0, egress.length - MOST_LISTED) + Math.max(0, ingress.length - MOST_LISTED);
    const truncated = { type: "Truncated", status: "True", reason: "MaxEdges", message: `${left} edges are not listed; the totals count them.`, lastTransitionTime: "2026-05-02T10:00:00Z" };
    return {
      apiVersion: "scopeprobe.io/v1alpha1",
      kind: "Topology",
      metadata: { name: `${kind.toLowerCase()}-${name}`, namespace },
      spec: {},
      status: {
        workload: { apiVersion, kind, name },
        egress: egress.slice(0, MOST_LISTED),
        ingress: ingress.slice(0, MOST_LISTED),
        conditions: left > 0 ? [truncated] : [],
      },
    };
  }

  /** Returns all objects. */
  objects() {
    return this.workloads.map((workload) => this.object(workload));
  }

  /** Adds a call. Returns the identifier of its edge. */
  call(client, server, port) {
    this.calls.push({ client, server, port });
    this.list(this.calls.at(-1), this.calls.length - 1);
    return makeEdge(this.calls.at(-1), this.calls.length - 1, true).id;
  }
}
