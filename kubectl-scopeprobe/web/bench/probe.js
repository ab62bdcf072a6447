// Runs in the page before its own code: measures when something is drawn.
window.benchProbe = {
  /** Resolves with the time at which the frame with all changes up to now is drawn. */
  frame() {
    return new Promise((resolve) =>
      requestAnimationFrame(() => {
        const channel = new MessageChannel();
        channel.port1.onmessage = () => resolve(performance.now());
        channel.port2.postMessage(0);
      }),
    );
  },

  /** Resolves with the time at which nodes are arranged and drawn. */
  arranged() {
    const picture = document.getElementById("picture");
    return new Promise((resolve) => {
      const check = () => {
        if (!picture.hasAttribute("data-arranged")) return;
        observer.disconnect();
        resolve(this.frame());
      };
      const observer = new MutationObserver(check);
      observer.observe(picture, { attributes: true, attributeFilter: ["data-arranged"] });
      check();
    });
  },

  /** Returns the milliseconds from an action to its picture. */
  async timed(action) {
    document.getElementById("picture").removeAttribute("data-arranged");
    const begin = performance.now();
    action();
    return (await this.arranged()) - begin;
  },

  filter(text) {
    return this.timed(() => {
      const input = document.getElementById("filter");
      input.value = text;
      input.dispatchEvent(new Event("input"));
    });
  },

  go(hash) {
    return this.timed(() => (location.hash = hash));
  },

  /** Returns two drawn workloads without a line from the first to the second. */
  unrelated() {
    const { cy } = window.scopeprobePicture;
    const drawn = cy.nodes('[shape = "workload"]').map((node) => node.id());
    for (const client of drawn) {
      const server = drawn.find((one) => one !== client && cy.getElementById(`${client}>${one}`).empty());
      if (server !== undefined) return [client, server];
    }
    throw new Error("each workload calls each other");
  },

  /** Resolves with the time of the day at which a new line between two nodes is drawn, in milliseconds. */
  edgeBetween([client, server]) {
    return new Promise((resolve) => {
      window.scopeprobePicture.cy.on("add", "edge", async ({ target }) => {
        if (target.id() === `${client}>${server}`) resolve((await this.frame()) + performance.timeOrigin);
      });
    });
  },

  /** Begins to count how often the picture is drawn. */
  startCounting() {
    this.frames = [];
    this.count = () => this.frames.push(performance.now());
    window.scopeprobePicture.cy.on("render", this.count);
  },

  /** Returns how often the picture was drawn in a second. */
  stopCounting() {
    window.scopeprobePicture.cy.off("render", this.count);
    return ((this.frames.length - 1) * 1000) / (this.frames.at(-1) - this.frames[0]);
  },
};

document.addEventListener("DOMContentLoaded", async () => {
  const drawn = await window.benchProbe.arranged();
  const snapshot = performance.getEntriesByType("resource").find(({ name }) => name.endsWith("/api/graph"));
  window.benchProbe.first = { picture: drawn - snapshot.responseEnd, bytes: snapshot.encodedBodySize };
});
