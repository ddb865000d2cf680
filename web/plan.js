import { api } from "../../scripts/api.js";
import { app } from "../../scripts/app.js";
import { display, MARGIN } from "./display.js";
import { everyNode } from "./graph.js";

// Shows the plan of a run on the nodes that determine it. Python plans and draws; this script describes the graph.

const PATCHES = ["UltraGenApply", "UltraGenLoadModel"];
const MULTIGPU = "UltraGenMultiGPU";
const SHOWN_ON = [...PATCHES, MULTIGPU, "UltraGenPlan"];
const FOLLOWED = [...SHOWN_ON, "UltraGenLocalConfig", "UltraGenGlobalConfig", "UltraGenEmptyLatent"];
const NAME = "ultragen.plan";
const SETTING = "UltraGen.Plan.OnNodes";
const DEBOUNCE = 200; // milliseconds
const MAX_DEPTH = 100; // nodes followed upstream
const RETRY = 5000; // milliseconds after a failed request
const MUTED = 2; // LiteGraph's node modes
const BYPASSED = 4;
const UNKNOWN = {}; // instead of a node: known only when the graph runs
const KEEPS_SIZE = /^(KSampler|SamplerCustom|VAEDecode|VAEEncode|UltraGen|SetLatentNoiseMask|Reroute)/;

const shownOn = new Set(); // nodes of all graphs; app.graph lacks those inside subgraphs
let timer = 0;

app.registerExtension({
    name: NAME,
    settings: [
        {
            id: SETTING,
            name: "UltraGen: show the plan on its nodes (windows, cost, memory)",
            type: "boolean",
            defaultValue: true,
            onChange: () => follow(),
        },
    ],
    nodeCreated(node) {
        if (!FOLLOWED.includes(node.comfyClass)) return;
        for (const widget of node.widgets ?? []) widget && after(widget, "callback", follow);
        for (const event of ["onConnectionsChange", "onRemoved"]) after(node, event, follow);
        if (SHOWN_ON.includes(node.comfyClass)) {
            add(node);
            shownOn.add(node);
            after(node, "onRemoved", () => shownOn.delete(node));
        }
        if (node.comfyClass === "UltraGenPlan") {
            after(node, "onExecuted", (output) => output?.ultragen_plan && show(node, output.ultragen_plan[0]));
        }
        follow();
    },
    setup: () => api.addEventListener("graphChanged", follow), // a link or a mode of any node
    afterConfigureGraph: () => follow(),
    refreshComboInNodes: () => refreshAll(), // there may be new files
});

function after(object, name, then) {
    const before = object[name];
    object[name] = function (...args) {
        const result = before?.apply(this, args);
        then(...args);
        return result;
    };
}

function refreshAll() {
    for (const node of shownOn) node.ultragenAsked = undefined;
    follow();
}

function follow() {
    clearTimeout(timer);
    timer = setTimeout(() => {
        for (const node of shownOn) if (node.graph) refresh(node);
    }, DEBOUNCE);
}

async function refresh(node) {
    const wanted = app.extensionManager.setting.get(SETTING) ? readableRequest(node) : null;
    const asked = JSON.stringify(wanted);
    if (asked === node.ultragenAsked) return;
    node.ultragenAsked = asked;
    if (!wanted) return show(node, "");
    if (wanted.error) return show(node, "", wanted.error);
    try {
        const response = await api.fetchApi("/ultragen/plan", {
            method: "POST",
            headers: { "Content-Type": "application/json" },
            body: asked,
        });
        const { picture = "", error = "" } = await response.json();
        if (asked === node.ultragenAsked) show(node, picture, error);
    } catch {
        if (asked !== node.ultragenAsked) return;
        node.ultragenAsked = undefined; // the server may be restarting
        show(node, "", "ComfyUI did not answer. Trying again in 5 seconds.");
        setTimeout(follow, RETRY);
    }
}

/** Return the request, or an error: a node of another pack that cannot be read must not break the page. */
function readableRequest(node) {
    try {
        return request(node);
    } catch (error) {
        return { error: `The plan cannot read this graph (${error.message}). Run UltraGen Plan to see it.` };
    }
}

/** Describe what would run with the model of `node`, for POST /ultragen/plan; null if nothing would. */
function request(node) {
    const chain = models(node);
    const patches = chain.filter((other) => PATCHES.includes(other.comfyClass));
    if (!active(node) || !patches.length) return null;
    const end = chain.at(-1);
    if (end === patches.at(-1) && !named(end, "checkpoint")) return null; // nothing is connected
    const [asked, ...before] = patches.map((patch) => ({
        node: values(patch),
        local: values(sourceOf(patch, "ULTRAGEN_LOCAL")),
        global: values(sourceOf(patch, "ULTRAGEN_GLOBAL")),
    }));
    const multigpu = values(chain.find((other) => other.comfyClass === MULTIGPU));
    return { ...asked, before: before.reverse(), model: file(end), latent: size(node, patches[0]), multigpu };
}

const file = (node) => ["checkpoint", "unet_name"].map((name) => values(node)?.[name]).find(Boolean) ?? null;

// --- the size of the latent that goes into the sampler of this model

function size(node, patch) {
    const all = everyNode(node.graph).filter(active);
    const samplers = [node, ...all].filter((other) => input(other, "LATENT") && models(other).includes(patch));
    if (samplers.length) return sizeOf(sourceOf(samplers[0], "LATENT"));
    const sources = all.filter((other) => other.comfyClass === "UltraGenEmptyLatent");
    return sources.length === 1 ? sizeOf(sources[0]) : null;
}

/** The widgets of an UltraGen Empty Latent and the `steps` that resize it; preset null if known only at run time. */
function sizeOf(node, steps = []) {
    const held = values(node) ?? {};
    const { width, height, length, frames = length } = held;
    if (node?.comfyClass === "UltraGenEmptyLatent") return { ...held, steps };
    if (width !== undefined && height !== undefined && frames !== undefined) {
        return { preset: "custom", width, height, frames, steps };
    }
    if (width !== undefined && height !== undefined) steps = [{ width, height }, ...steps];
    else if (held.scale_by !== undefined) steps = [{ scale_by: held.scale_by }, ...steps];
    else if (!KEEPS_SIZE.test(node?.comfyClass)) return { preset: null };
    return steps.length > MAX_DEPTH ? { preset: null } : sizeOf(sourceOf(node, "LATENT", "IMAGE"), steps);
}

// --- the graph as it would be queued: links are followed through reroutes, bypassed nodes and subgraphs

const active = (node) => node.mode !== MUTED && node.mode !== BYPASSED;

/** The first connected input of these types. */
const input = (node, ...types) => node.inputs?.find((one) => one && types.includes(one.type) && one.link != null);

const sourceOf = (node, ...types) => node && origin(node, input(node, ...types));

/** Return `node` and the nodes upstream along its model, nearest first. */
function models(node) {
    const found = [];
    for (; node && found.length < MAX_DEPTH; node = sourceOf(node, "MODEL", "GUIDER")) found.push(node);
    return found;
}

/** Return the node that feeds this input, UNKNOWN if it is known only at run time, null if there is none. */
function origin(node, slot, left = MAX_DEPTH) {
    const link = slot?.link == null ? null : node.graph?.getLink?.(slot.link);
    return link ? output(node.graph, link, left - 1) : null;
}

function output(graph, { origin_id, origin_slot }, left) {
    if (!left) return UNKNOWN;
    if (origin_id === graph.inputNode?.id) return outside(graph, origin_slot, left);
    const node = graph.getNodeById?.(origin_id);
    if (!node || node.mode === MUTED) return null;
    if (node.mode === BYPASSED) {
        const same = (node.inputs ?? []).filter(({ type }) => type === node.outputs?.[origin_slot]?.type);
        return origin(node, same.find((one) => one === node.inputs[origin_slot]) ?? same[0], left);
    }
    if (node.subgraph) {
        const link = node.subgraph.outputNode?.slots?.[origin_slot]?.getLinks?.()[0];
        return link ? output(node.subgraph, link, left - 1) : null;
    }
    if (!node.isVirtualNode || node.type === "PrimitiveNode") return node;
    return node.inputs?.length === 1 ? origin(node, node.inputs[0], left) : UNKNOWN;
}

/** Return what feeds a subgraph's input from outside: a node, or the widget of the subgraph's node. */
function outside(subgraph, slot, left) {
    const [outer, ...others] = everyNode(subgraph).filter((node) => node.subgraph === subgraph);
    if (!outer || others.length) return UNKNOWN;
    const fed = outer.inputs?.[slot];
    return origin(outer, fed, left) ?? (fed?.widget ? { promoted: named(outer, fed.widget.name) } : null);
}

const named = (node, name) => node.widgets?.find((widget) => widget?.name === name);

/** Return the values of a node's widgets by name; null for a value known only at run time. */
function values(node) {
    if (!node) return null;
    const widgets = (node.widgets ?? []).filter((widget) => typeof widget?.name === "string" && widget.name !== NAME);
    return Object.fromEntries(widgets.map((widget) => [widget.name, valueOf(node, widget)]));
}

function valueOf(node, widget) {
    const from = origin(node, node.inputs?.find((one) => one?.name === widget.name));
    if (!from) return widget.value;
    if ("promoted" in from) return (from.promoted ?? widget).value;
    return /^Primitive/.test(from.comfyClass ?? from.type) ? (from.widgets?.[0]?.value ?? null) : null;
}

function show(node, picture, error = "") {
    const { element } = named(node, NAME);
    const svg = picture && new DOMParser().parseFromString(picture, "image/svg+xml").documentElement;
    svg && Object.assign(svg.style, { display: "block", width: "100%", height: "auto" });
    element.replaceChildren(svg || error);
    const [width, height] = node.computeSize();
    node.setSize([Math.max(node.size[0], width), Math.max(node.size[1], height)]);
    node.setDirtyCanvas(true, true);
}

function add(node) {
    const element = document.createElement("div");
    Object.assign(element.style, { font: "11px/15px sans-serif", overflow: "hidden", whiteSpace: "pre-wrap" });
    const height = () => {
        const svg = element.querySelector("svg");
        if (!svg) return element.textContent ? 45 : 0;
        return ((node.size[0] - 2 * MARGIN) * svg.getAttribute("height")) / svg.getAttribute("width");
    };
    display(node, NAME, element, height);
}
