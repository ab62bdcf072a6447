// The objects of a shop: calls through Services, failed and pending ones, external peers, a proxy and gaps.

const workload = (namespace, kind, name) => ({ type: "Workload", apiVersion: kind === "CronJob" ? "batch/v1" : "apps/v1", kind, namespace, name });

const WORKLOADS = {
  ingress: workload("edge", "Deployment", "ingress"),
  frontend: workload("shop", "Deployment", "frontend"),
  cart: workload("shop", "Deployment", "cart"),
  catalog: workload("shop", "Deployment", "catalog"),
  checkout: workload("shop", "Deployment", "checkout"),
  billing: workload("billing", "Deployment", "billing"),
  ledger: workload("billing", "StatefulSet", "ledger"),
  report: workload("billing", "CronJob", "report"),
  redis: workload("data", "StatefulSet", "redis"),
  postgres: workload("data", "StatefulSet", "postgres"),
  monitor: workload("monitoring", "DaemonSet", "monitor"),
};

const OTHERS = {
  browser: { type: "External", node: "node-1" },
  payments: { type: "DNSName", name: "api.payments.example" },
  mail: { type: "IP", ip: "192.0.2.25" },
  dns: { type: "Service", namespace: "kube-system", name: "kube-dns" },
  api: { type: "APIServer" },
};

// Client, server, Service or none, port, and what differs from the usual.
const CALLS = [
  ["browser", "ingress", undefined, 443, { opened: 1812, seen: "Server", identity: "IP" }],
  ["ingress", "frontend", "frontend:80", 8080, { opened: 1790, active: 12 }],
  ["frontend", "catalog", "catalog:80", 8080, { opened: 1633, active: 9 }],
  ["frontend", "cart", "cart:80", 8080, { opened: 911, active: 4, via: [{ side: "Client", peer: WORKLOADS.frontend, container: "envoy" }] }],
  ["frontend", "checkout", "checkout:80", 8080, { opened: 204, active: 1 }],
  ["cart", "redis", "redis:6379", 6379, { opened: 310, failed: 7, lastFailed: "2026-05-02T10:31:00Z" }],
  ["checkout", "cart", "cart:80", 8080, { opened: 204 }],
  ["checkout", "billing", "billing:80", 8080, { opened: 199 }],
  ["checkout", "payments", undefined, 443, { opened: 188, seen: "Client", identity: "IP", withoutBytes: 2 }],
  ["checkout", "mail", undefined, 25, { opened: 0, pending: 3, seen: "Client", identity: "IP" }],
  ["catalog", "postgres", "postgres:5432", 5432, { opened: 64, active: 8 }],
  ["billing", "ledger", "ledger:5432", 5432, { opened: 41, active: 2 }],
  ["report", "ledger", "ledger:5432", 5432, { opened: 6, direction: "Inferred", methods: ["SockDiag"] }],
  ["cart", "dns", "kube-dns:53", 53, { opened: 300, protocol: "UDP", seen: "Client" }],
  ["monitor", "catalog", undefined, 9090, { opened: 96 }],
  ["monitor", "api", undefined, 443, { opened: 3, active: 1, seen: "Client" }],
];

function edge(call, index, isEgress) {
  const [client, server, service, port, other] = call;
  const peerName = isEgress ? server : client;
  const namespace = (WORKLOADS[server] ?? OTHERS[server]).namespace;
  const [name, servicePort] = service?.split(":") ?? [];
  return {
    id: String(index + 1).padStart(16, "0"),
    peer: WORKLOADS[peerName] ?? OTHERS[peerName],
    ...(service === undefined ? {} : { service: { namespace, name, port: Number(servicePort) } }),
    port,
    protocol: "TCP",
    active: 0,
    failed: 0,
    bytesSent: isEgress ? 40_000 : 9_000_000,
    bytesReceived: isEgress ? 9_000_000 : 40_000,
    firstSeen: "2026-05-01T10:00:00Z",
    lastSeen: "2026-05-02T10:00:00Z",
    seen: "Both",
    identity: "Cgroup",
    methods: ["EBPF"],
    direction: "Observed",
    ...other,
  };
}

/** Returns the objects of the workloads. */
export function shop(calls = CALLS) {
  return Object.entries(WORKLOADS).map(([key, { apiVersion, kind, namespace, name }]) => ({
    apiVersion: "scopeprobe.io/v1alpha1",
    kind: "Topology",
    metadata: { name: `${kind.toLowerCase()}-${name}`, namespace },
    spec: {},
    status: {
      workload: { apiVersion, kind, name },
      egress: calls.flatMap((call, index) => (call[0] === key ? [edge(call, index, true)] : [])),
      ingress: calls.flatMap((call, index) => (call[1] === key ? [edge(call, index, false)] : [])),
      conditions: key === "postgres"
        ? [{ type: "Truncated", status: "True", reason: "MaxEdges", message: "3 ingress edges are not listed; the totals count them.", lastTransitionTime: "2026-05-02T10:00:00Z" }]
        : [],
    },
  }));
}

/** Returns the same shop, in which the catalog calls redis, too. */
export function laterShop() {
  return shop([...CALLS, ["catalog", "redis", "redis:6379", 6379, { opened: 1 }]]);
}

/** Returns the object of a workload that the shop does not have. It calls redis. */
export function newcomer() {
  const [kind, name] = ["Deployment", "newcomer"];
  const status = { workload: { apiVersion: "apps/v1", kind, name }, egress: [edge(["newcomer", "redis", "redis:6379", 6379, { opened: 1 }], 98, true)], ingress: [], conditions: [] };
  return { apiVersion: "scopeprobe.io/v1alpha1", kind: "Topology", metadata: { name: "deployment-newcomer", namespace: "shop" }, spec: {}, status };
}
