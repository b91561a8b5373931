// What makes Chromium look like browsers that have less. Each function runs in a page before its scripts.

/** Internet Explorer 8 and 9: no XMLHttpRequest across origins, but XDomainRequest, which sends plain text, no headers, and needs no preflight. */
export function onlyXDomainRequest() {
  const Native = window.XMLHttpRequest;
  Object.defineProperty(Native.prototype, 'withCredentials', { value: undefined });
  window.XDomainRequest = class {
    constructor() {
      const request = new Native();
      this.responseText = '';
      const handOn = (event) => { this.responseText = request.responseText; this[event]?.(); };
      for (const event of ['onprogress', 'onload', 'onerror', 'ontimeout']) request[event] = () => handOn(event);
      this.open = (method, url) => request.open(method, url);
      this.send = (body) => request.send(body);
      this.abort = () => request.abort();
    }
  };
}

/** SockJS then takes `iframe-htmlfile`. */
export function noEventSource() {
  delete window.EventSource;
}

/** SockJS then takes `iframe-xhr-polling`. */
export function onlyPolling() {
  window._sockjs_onload = () => { for (const name of ['iframe-eventsource', 'iframe-htmlfile']) window.SockJS[name].enabled = () => false; };
}

/** SockJS then takes `jsonp-polling`. */
export function noFrames() {
  window._sockjs_onload = () => { for (const name of ['eventsource', 'htmlfile', 'xhr-polling']) window.SockJS[`iframe-${name}`].enabled = () => false; };
}
