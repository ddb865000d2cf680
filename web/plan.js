import { api } from "../../scripts/api.js";
import { app } from "../../scripts/app.js";
import { display } from "./display.js";

// A picture of what a run would do, on the nodes that decide it. Python draws it; this gathers what the canvas says.

const PATCHES = ["UltraGenApply", "UltraGenLoadModel"];
const SHOWN_ON = [...PATCHES, "UltraGenPlan"];
const FOLLOWED = [...SHOWN_ON, "UltraGenLocalConfig", "UltraGenGlobalConfig", "UltraGenEmptyLatent"];
const NAME = "ultragen.plan";
const SETTING = "UltraGen.Plan.OnNodes";
const PAUSE = 200; // milliseconds without a change
const SIDES = 30; // pixels of a node's width beside its widgets
const FARTHEST = 100; // nodes in a row
const AGAIN = 5000; // milliseconds after a question without an answer
const MUTED = 2; // LiteGraph's modes of a node
const BYPASSED = 4;
const UNKNOWN = {}; // in place of a node
const KEEPS_SIZE = /^(KSampler|SamplerCustom|VAEDecode|VAEEncode|UltraGen|SetLatentNoiseMask|Reroute)/;

const shownOn = new Set(); // nodes of every graph: those inside subgraphs are not among app.graph's
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
    setup: () => api.addEventListener("graphChanged", follow), // links and modes of any node
    afterConfigureGraph: () => follow(),
    refreshComboInNodes: () => again(), // files may have come
});

function after(object, name, then) {
    const before = object[name];
    object[name] = function (...args) {
        const result = before?.apply(this, args);
        then(...args);
        return result;
    };
}

function again() {
    for (const node of shownOn) node.ultragenAsked = undefined;
    follow();
}

function follow() {
    clearTimeout(timer);
    timer = setTimeout(() => {
        for (const node of shownOn) if (node.graph) refresh(node);
    }, PAUSE);
}

async function refresh(node) {
    const wanted = app.extensionManager.setting.get(SETTING) ? asking(node) : null;
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
        node.ultragenAsked = undefined; // the server may be starting again
        show(node, "", "ComfyUI did not answer.");
        setTimeout(follow, AGAIN);
    }
}

/** Nodes of other packs may be anything: one that cannot be read costs the picture, not the page. */
function asking(node) {
    try {
        return question(node);
    } catch (error) {
        return { error: `This graph cannot be read before it runs (${error.message}).` };
    }
}

function question(node) {
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
    return { ...asked, before: before.reverse(), model: file(end), latent: size(node, patches[0]) };
}

const file = (node) => ["checkpoint", "unet_name"].map((name) => values(node)?.[name]).find(Boolean) ?? null;

// --- the size: of what the sampler that gets this model is given

function size(node, patch) {
    const all = everyNode(node.graph).filter(active);
    const samplers = [node, ...all].filter((other) => input(other, "LATENT") && models(other).includes(patch));
    if (samplers.length) return sizeOf(sourceOf(samplers[0], "LATENT"));
    const sources = all.filter((other) => other.comfyClass === "UltraGenEmptyLatent");
    return sources.length === 1 ? sizeOf(sources[0]) : null;
}

/** As UltraGen Empty Latent's widgets, with what is done to it after; null where only the run knows. */
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
    return steps.length > FARTHEST ? { preset: null } : sizeOf(sourceOf(node, "LATENT", "IMAGE"), steps);
}

// --- what feeds what in the graph as it would be queued: through reroutes, bypassed nodes and walls of subgraphs

const active = (node) => node.mode !== MUTED && node.mode !== BYPASSED;

/** Every node of the graph and of the subgraphs in it. */
function everyNode(graph) {
    const root = graph?.rootGraph ?? graph;
    return [root, ...(root?.subgraphs?.values?.() ?? [])].flatMap((one) => one?._nodes ?? []).filter(Boolean);
}

/** The first connected input of these types. */
const input = (node, ...types) => node.inputs?.find((one) => one && types.includes(one.type) && one.link != null);

const sourceOf = (node, ...types) => node && origin(node, input(node, ...types));

/** `node`, then the nodes that its model comes from, nearest first. */
function models(node) {
    const found = [];
    for (; node && found.length < FARTHEST; node = sourceOf(node, "MODEL", "GUIDER")) found.push(node);
    return found;
}

/** The node whose output feeds this input, UNKNOWN where only the run knows it, null where none does. */
function origin(node, slot, left = FARTHEST) {
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

/** What feeds an input of a subgraph from outside: a node, or the widget of the subgraph's own node. */
function outside(subgraph, slot, left) {
    const [outer, ...others] = everyNode(subgraph).filter((node) => node.subgraph === subgraph);
    if (!outer || others.length) return UNKNOWN;
    const fed = outer.inputs?.[slot];
    return origin(outer, fed, left) ?? (fed?.widget ? { promoted: named(outer, fed.widget.name) } : null);
}

const named = (node, name) => node.widgets?.find((widget) => widget?.name === name);

/** Values of a node's widgets by name; null for one that only the run knows. */
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
        return ((node.size[0] - SIDES) * svg.getAttribute("height")) / svg.getAttribute("width");
    };
    display(node, NAME, element, height);
}
