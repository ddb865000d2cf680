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
const FARTHEST = 50; // nodes between a patch and what loads its model

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
        for (const widget of node.widgets ?? []) after(widget, "callback", follow);
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
    afterConfigureGraph: () => follow(),
});

function after(object, name, then) {
    const before = object[name];
    object[name] = function (...args) {
        const result = before?.apply(this, args);
        then(...args);
        return result;
    };
}

function follow() {
    clearTimeout(timer);
    timer = setTimeout(() => {
        for (const node of shownOn) if (node.graph) refresh(node);
    }, PAUSE);
}

async function refresh(node) {
    const wanted = app.extensionManager.setting.get(SETTING) ? question(node) : null;
    const asked = JSON.stringify(wanted);
    if (asked === node.ultragenAsked) return;
    node.ultragenAsked = asked;
    if (!wanted) return show(node, "");
    const response = await api.fetchApi("/ultragen/plan", {
        method: "POST",
        headers: { "Content-Type": "application/json" },
        body: asked,
    });
    const answer = await response.json().catch(() => ({}));
    if (asked === node.ultragenAsked) show(node, answer.picture ?? "", answer.error);
}

function question(node) {
    const patch = PATCHES.includes(node.comfyClass) ? node : upstream(node, (other) => PATCHES.includes(other.comfyClass));
    if (!patch) return null;
    const file = (other) => ["checkpoint", "unet_name"].map((name) => values(other)[name]).find(Boolean);
    const loader = file(patch) ? patch : upstream(patch, file);
    return {
        node: values(patch),
        model: loader ? file(loader) : null,
        local: values(source(patch, "local_config")),
        global: values(source(patch, "global_config")),
        latent: size(node.graph?._nodes ?? []),
    };
}

function size(nodes) {
    const latent = nodes.find((node) => node.comfyClass === "UltraGenEmptyLatent");
    if (latent) return values(latent);
    // Core's own nodes, such as WanImageToVideo.
    const { width, height, length } = nodes.map(values).find((all) => all.width && all.height && all.length) ?? {};
    return width ? { preset: "custom", width, height, frames: length } : null;
}

function upstream(node, matches) {
    for (let steps = 0; node && steps < FARTHEST; steps++) {
        node = source(node, node.inputs?.find((input) => input.type === "MODEL")?.name);
        if (node && matches(node)) return node;
    }
    return null;
}

function source(node, input) {
    const slot = node.inputs?.findIndex(({ name }) => name === input) ?? -1;
    return slot < 0 ? null : node.getInputNode(slot);
}

function values(node) {
    if (!node) return null;
    const widgets = (node.widgets ?? []).filter(({ name }) => !name.startsWith("ultragen."));
    return Object.fromEntries(widgets.map(({ name, value }) => [name, value]));
}

function show(node, picture, error = "") {
    const { element } = node.widgets.find((widget) => widget.name === NAME);
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
