import { api } from "../../scripts/api.js";
import { app } from "../../scripts/app.js";
import { rootOf } from "./graph.js";

// While a model of the pack samples, ComfyUI's preview is an animated WebP. The Nodes 2.0 renderer plays it by itself.
// LiteGraph draws the first frame of an image alone, so here the frames take turns in `imgs` of the node.

const SETTING = "UltraGen.Preview.Moving";
const TICK = 125; // milliseconds: a frame of the loop, FRAMES_PER_SECOND in moving_preview.py
const ENDS = ["execution_success", "execution_error", "execution_interrupted", "execution_start"];

const loops = new Map(); // by execution id of a node: images, one for each tick
let newest = 0; // counts previews, because images load late
let timer = 0;
let moving = true; // what this page wants
let told = ""; // what the server was last told

app.registerExtension({
    name: "ultragen.preview",
    settings: [
        {
            id: SETTING,
            name: "UltraGen: show the video moving while it is sampled",
            type: "boolean",
            defaultValue: true,
            onChange(value) {
                moving = value; // ComfyUI stores it later
                tell();
            },
        },
    ],
    setup() {
        api.addEventListener("b_preview_with_metadata", ({ detail }) => receive(detail));
        api.addEventListener("reconnected", () => tell((told = ""))); // the server may have been restarted
        api.addEventListener("status", () => tell()); // the client may have its id only now
        for (const event of ENDS) api.addEventListener(event, stop);
    },
});

/** Tell the server whether this page wants loops, unless it knows. */
async function tell() {
    const body = JSON.stringify({ client_id: api.clientId, moving });
    if (!api.clientId || body === told || (!told && moving)) return; // loops are the server's default
    told = body;
    const headers = { "Content-Type": "application/json" };
    await api.fetchApi("/ultragen/preview", { method: "POST", headers, body }).catch(() => (told = ""));
}

async function receive({ blob, displayNodeId }) {
    const number = ++newest;
    loops.delete(displayNodeId);
    if (LiteGraph.vueNodesMode) return;
    const frames = framesOf(await blob.arrayBuffer());
    if (frames.length < 2) return;
    const images = await Promise.all(frames.map(load));
    frames.forEach(({ url }) => URL.revokeObjectURL(url));
    if (number !== newest) return;
    loops.set(
        displayNodeId,
        images.flatMap((image, index) => Array(Math.max(1, Math.round(frames[index].milliseconds / TICK))).fill(image)),
    );
    timer ||= setInterval(draw, TICK);
}

function stop() {
    newest++;
    loops.clear();
    clearInterval(timer);
    timer = 0;
}

function draw() {
    const tick = Math.floor(performance.now() / TICK); // a new loop continues where the last one was
    for (const [path, images] of loops) {
        for (const node of nodesOn(path)) {
            if (!node.imgs?.length) continue; // ComfyUI has not drawn the preview yet
            node.imgs = [images[tick % images.length]];
            node.setDirtyCanvas(true, false);
        }
    }
}

/** Return the nodes that show the preview of a node: itself and the subgraphs' nodes around it ("5:12": 12 in 5). */
function nodesOn(path) {
    const nodes = [];
    let graph = rootOf(app.graph);
    for (const id of String(path).split(":")) {
        const node = graph?.getNodeById(id);
        if (!node) break;
        nodes.push(node);
        graph = node.subgraph;
    }
    return nodes;
}

/** Return every frame of an animated WebP as an image file of its own, {url, milliseconds}; none for other files. */
function framesOf(buffer) {
    const view = new DataView(buffer), text = (at) => String.fromCharCode(...new Uint8Array(buffer, at, 4));
    if (buffer.byteLength < 12 || text(0) !== "RIFF" || text(8) !== "WEBP") return [];
    const frames = [];
    for (let at = 12, size; at + 8 <= buffer.byteLength; at += 8 + size + (size % 2)) {
        size = view.getUint32(at + 4, true);
        if (text(at) !== "ANMF") continue;
        // 16 bytes: x, y, width, height and duration of 3 bytes each, and flags. Then a picture's own chunks.
        const picture = buffer.slice(at + 24, at + 8 + size);
        const header = new TextEncoder().encode("RIFF....WEBP");
        new DataView(header.buffer).setUint32(4, 4 + picture.byteLength, true);
        const url = URL.createObjectURL(new Blob([header, picture], { type: "image/webp" }));
        frames.push({ url, milliseconds: view.getUint32(at + 20, true) & 0xffffff });
    }
    return frames;
}

async function load({ url }) {
    const image = new Image();
    image.src = url;
    await image.decode();
    return image;
}
