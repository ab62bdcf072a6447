// Tests of those parts of the page that need no browser.
import assert from "node:assert/strict";
import { fileURLToPath } from "node:url";

import { build } from "esbuild";

const contents = ["columns", "commands", "drawing", "filter", "model", "place"].map((name) => `export * as ${name} from "./${name}";`).join("\n");
const resolveDir = fileURLToPath(new URL("../src", import.meta.url));
const { outputFiles } = await build({ stdin: { contents, resolveDir, loader: "ts" }, bundle: true, format: "esm", target: "es2022", write: false });
const { columns, commands, drawing, filter, model, place } = await import(`data:text/javascript;base64,${Buffer.from(outputFiles[0].contents).toString("base64")}`);

const workload = (namespace, name) => ({ label: `${namespace}/${name}`, type: "Workload", namespace, kind: "Deployment", name });

/** Returns a map of calls, each from a workload to another, as `namespace/name`. */
function graph(calls, options = {}) {
  const ends = new Set(calls.flat());
  const call = ([client, server]) => ({ client, server, port: 80, protocol: "TCP", opened: 1, active: 0, failed: 0, pending: 0, withoutBytes: 0 });
  return new model.Graph({
    revision: 1, isLive: true, arguments: [], caveats: [], problem: "",
    nodes: Object.fromEntries([...ends].map((end) => [end, workload(...end.split("/"))])),
    edges: Object.fromEntries(calls.map((one, index) => [String(index).padStart(4, "0"), call(one)])),
    ...options,
  });
}

const draw = (map, hash) => drawing.draw(map, place.read(hash), () => true);

/** Namespaces of two workloads each, of which one calls the other. */
const pairs = (count) => graph(Array.from({ length: count }, (_, number) => [`n${number}/client`, `n${number}/server`]));

/** Returns the sentences that a drawing should have, counted by its nodes. */
function countedNotes({ nodes }, isGroup) {
  const count = (chosen) => chosen.reduce((sum, { members }) => sum + members.length, 0);
  const rest = nodes.filter(({ id }) => id === "group:further nodes");
  const groups = nodes.filter(({ id, members }) => isGroup && id !== "group:further nodes" && members.length > 1);
  return [
    ...(groups.length > 0 ? [`${count(groups)} nodes are drawn as ${groups.length} groups.`] : []),
    ...(rest.length > 0 ? [`${count(rest)} nodes with the fewest edges are drawn as one.`] : []),
  ];
}

export const tests = [
  ["notes count the nodes that are not drawn one by one", () => {
    const namespaces = draw(pairs(400), "");
    assert.equal(namespaces.nodes.length, 300);
    assert.deepEqual(namespaces.notes, ["202 nodes with the fewest edges are drawn as one."]);
    assert.deepEqual(namespaces.notes, countedNotes(namespaces, false));
    const workloads = draw(pairs(400), "in=");
    assert.equal(workloads.nodes.length, 300);
    assert.deepEqual(workloads.notes, ["598 nodes are drawn as 299 groups.", "202 nodes with the fewest edges are drawn as one."]);
    assert.deepEqual(workloads.notes, countedNotes(workloads, true));
    assert.deepEqual(draw(pairs(150), "in=").notes, []);
    assert.deepEqual(draw(pairs(400), "in=&whole=1").notes, []);
    for (const [count, nodes] of [[1500, 1200], [3001, 500]]) {
      const most = draw(pairs(count), "in=&whole=1");
      assert.equal(most.nodes.length, nodes);
      assert.deepEqual(most.notes, countedNotes(most, true));
    }
    const some = draw(pairs(200), "in=");
    assert.deepEqual(some.notes, ["200 nodes are drawn as 100 groups."]);
    assert.deepEqual(some.notes, countedNotes(some, true));
  }],
  ["groups count the peers that are shown", () => {
    const map = graph([["shop/web", "shop/cart"], ["shop/web", "data/db"]]);
    map.nodes.get("shop/cart").type = "Service";
    const detail = (keeps) => drawing.draw(map, place.read(""), keeps).nodes.map(({ id, detail }) => [id, detail]);
    assert.deepEqual(detail(() => true), [["ns:data", "1 peer shown"], ["ns:shop", "2 peers shown"]]);
    assert.deepEqual(detail(({ server }) => server === "data/db"), [["ns:data", "1 peer shown"], ["ns:shop", "1 peer shown"]]);
  }],
  ["nodes of one name are drawn with their kind", () => {
    const map = graph([["shop/web", "shop/twin"]]);
    map.nodes.get("shop/web").label = "shop/web (Deployment)";
    Object.assign(map.nodes.get("shop/twin"), { label: "shop/web (StatefulSet)", name: "web", kind: "StatefulSet" });
    assert.deepEqual(draw(map, "in=").nodes.map(({ label }) => label), ["web (StatefulSet)", "web (Deployment)"]);
  }],
  ["columns have callers on the left, and no node covers another", () => {
    const boxes = Array.from({ length: 400 }, (_, number) => ({ id: `n${String(number).padStart(3, "0")}`, width: 80 + (number % 7) * 20, height: 34 + (number % 2) * 12 }));
    const edges = boxes.slice(0, 200).flatMap(({ id }, index) => [3, 5, 11].map((step) => [id, boxes[200 + ((index * step) % 200)].id]));
    const { positions, number } = columns.arrangeInColumns({ number: 7, nodes: boxes, edges });
    assert.equal(number, 7);
    assert.equal(positions.length, 400);
    const at = new Map(positions.map(([id, x, y]) => [id, { x, y }]));
    for (const [client, server] of edges) assert.ok(at.get(client).x < at.get(server).x, `${client} is left of ${server}`);
    for (const [index, one] of boxes.entries()) {
      for (const other of boxes.slice(index + 1)) {
        const [a, b] = [at.get(one.id), at.get(other.id)];
        const isApart = Math.abs(a.x - b.x) * 2 >= one.width + other.width || Math.abs(a.y - b.y) * 2 >= one.height + other.height;
        assert.ok(isApart, `${one.id} and ${other.id}`);
      }
    }
    // The same request in another order.
    const again = columns.arrangeInColumns({ number: 7, nodes: boxes.toReversed(), edges: edges.toReversed() });
    assert.deepEqual(new Map(again.positions.map(([id, ...place]) => [id, place])), new Map(positions.map(([id, ...place]) => [id, place])));
  }],
  ["commands have the namespace and the filters of the page", () => {
    const all = ["--all-namespaces", "--context", "prod"];
    const expected = [
      [all, "in=", "--all-namespaces --context prod"],
      [all, "in=shop", "--namespace shop --context prod"],
      [["--file", "a.json"], "in=shop", "--namespace shop --file a.json"],
      // They read a part of the map, which the command keeps.
      [["--namespace", "data"], "in=shop", "--namespace data"],
      [[], "in=shop", ""],
      [all, "in=&filter=Is:Failed NEW:24H Port:0443 IS:udp cart -is:external", "--failed --new-since 24h --port 443 --protocol udp --all-namespaces --context prod"],
      [all, "in=&filter=port:80 port:81 port:70000 is:external", "--port 80 --external --all-namespaces --context prod"],
      [all, "", "--namespace-level --all-namespaces --context prod"],
      [all, "around=shop%2Fweb&hops=2", "--around shop/Deployment/web --hops 2 --all-namespaces --context prod"],
    ];
    for (const [given, hash, options] of expected) {
      const command = commands.table(graph([["shop/web", "data/db"]], { arguments: given }), place.read(hash));
      assert.equal(command, `kubectl scopeprobe table ${options}`.trim());
    }
  }],
  ["filters with names of the language are wrong", () => {
    const map = graph([["shop/web", "data/db"]]);
    for (const word of ["is:constructor", "is:__proto__", "is:toString", "is:hasOwnProperty"]) {
      const { errors, keeps } = filter.read(word, map, 0);
      assert.equal(errors.length, 1, word);
      assert.ok(keeps(map.edges.get("0000"), "0000"), word);
    }
    assert.deepEqual(filter.read("Is:Failed", map, 0).errors, []);
  }],
];
