"use strict";
// The page holds its scripts and large data compressed: this restores the data, then runs the scripts in order.
async function inflate(text) {
  const packed = Uint8Array.from(atob(text), (character) => character.charCodeAt(0));
  const stream = new Blob([packed]).stream().pipeThrough(new DecompressionStream("deflate"));
  return new Uint8Array(await new Response(stream).arrayBuffer());
}

async function load() {
  for (const block of document.querySelectorAll("script[data-deflated]")) {
    block.textContent = new TextDecoder().decode(await inflate(block.textContent));
  }
  const scripts = document.querySelector("script[data-scripts]");
  for (const text of JSON.parse(scripts.textContent)) {
    document.body.append(Object.assign(document.createElement("script"), { textContent: text }));
  }
  scripts.remove();
}

// A browser that cannot restore them shows all views, as without scripts.
if ("DecompressionStream" in window) {
  // Until the scripts show the view of the address, pictures of the later views must not be fetched.
  for (const view of [...document.querySelectorAll("[data-view]")].slice(1)) view.hidden = true;
  load();
}
