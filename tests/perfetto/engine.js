// Perfetto's own trace processor (WebAssembly) as a filter: the byte stream of its RPC protocol, in and out.
// usage: node engine.js FOLDER, where FOLDER holds engine_bundle.js and its .wasm files
const fs = require('fs');
const path = require('path');
const vm = require('vm');

const input = process.stdin;
const folder = path.resolve(process.argv[2]);

class XMLHttpRequest {
  open(method, url) {
    this.url = url;
  }
  send() {
    const content = fs.readFileSync(path.join(folder, path.basename(this.url)));
    this.response = content.buffer.slice(content.byteOffset, content.byteOffset + content.length);
  }
}

function write(data) {
  for (let sent = 0; sent < data.length;) sent += fs.writeSync(1, data, sent);
}

// The bundle is to believe that it is in a web worker.
globalThis.process = undefined;
Object.assign(globalThis, {self: globalThis, XMLHttpRequest, WorkerGlobalScope: Object});
globalThis.location = {href: 'http://localhost/engine_bundle.js', protocol: 'http:', host: 'localhost'};
console.log = console.warn;
vm.runInThisContext(fs.readFileSync(path.join(folder, 'engine_bundle.js'), 'utf8'));

const port = {postMessage: write};
globalThis.onmessage({data: port});
setImmediate(() => input.on('data', chunk => port.onmessage({data: new Uint8Array(chunk)})));
