// The theme searches in a Worker, which a browser refuses to a page opened as a file. There an
// iframe takes its place, by the name that the theme's search script looks for in its parent.
if (location.protocol === "file:") {
  window.IFrameWorker = class IFrameWorker extends EventTarget {
    constructor(url) {
      super();
      const frame = document.createElement("iframe");
      frame.hidden = true;
      document.body.append(frame);
      this.frame = frame.contentWindow;
      this.ready = new Promise(resolve => {
        const page = this.frame.document;
        this.frame.postMessage = message => this.told(message);
        this.frame.importScripts = (...urls) => urls.reduce(
          (before, each) => before.then(() => load(page, each)), Promise.resolve());
        load(page, url).then(resolve);
      });
    }
    told(message) {
      const event = new MessageEvent("message", {data: message});
      this.dispatchEvent(event);
      this.onmessage?.(event);
    }
    postMessage(message) {
      this.ready.then(() =>
        this.frame.dispatchEvent(new this.frame.MessageEvent("message", {data: message})));
    }
    terminate() { this.frame.frameElement.remove(); }
  };
  window.Worker = window.IFrameWorker;
  function load(page, url) {
    return new Promise((resolve, reject) => {
      const script = page.createElement("script");
      script.addEventListener("load", resolve);
      script.addEventListener("error", reject);
      script.src = url;
      page.body.append(script);
    });
  }
}
