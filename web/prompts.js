import { api } from "../../scripts/api.js";
import { app } from "../../scripts/app.js";

// A button that queues one run for each prompt of a list. Python reads the list; this counts up the index.

const NODE = "UltraGenPrompts";
const QUESTION = ["text", "file", "format"];

app.registerExtension({
    name: "ultragen.prompts",
    beforeRegisterNodeDef(nodeType, { name }) {
        if (name !== NODE) return;
        const onNodeCreated = nodeType.prototype.onNodeCreated;
        nodeType.prototype.onNodeCreated = function () {
            onNodeCreated?.apply(this, arguments);
            // Old frontends begin with randomize. A workflow's own value comes after this, but before nodeCreated.
            const control = widgetOf(this, "index").linkedWidgets?.[0];
            if (control) control.value = "fixed";
        };
    },
    nodeCreated(node) {
        if (node.comfyClass !== NODE) return;
        const button = node.addWidget("button", "queue all prompts", "", () => queueAll(node), { serialize: false });
        button.serialize = false; // of workflows; the option is of prompts
    },
});

let queueing = false;

async function queueAll(node) {
    if (queueing) return; // a second click would count the index up as well
    queueing = true;
    try {
        await queueEach(node);
    } finally {
        queueing = false;
    }
}

async function queueEach(node) {
    const linked = node.inputs?.find((input) => [...QUESTION, "index"].includes(input.name) && input.link != null);
    if (linked) return say(`${linked.name} is linked: the length of the list is known only when it runs.`);
    const { count, error } = await listOf(node);
    if (error) return say(error);
    const index = widgetOf(node, "index");
    const widgets = [index, ...(index.linkedWidgets ?? [])];
    const before = widgets.map((widget) => widget.value);
    if (widgets[1]) widgets[1].value = "fixed";
    try {
        for (let number = 0; number < count; number++) {
            await queueIsFree();
            index.value = number;
            await app.queuePrompt(0, 1);
            if (Object.keys(app.lastNodeErrors ?? {}).length) break; // refused: the page says why
        }
    } finally {
        widgets.forEach((widget, place) => (widget.value = before[place]));
    }
}

// While the page queues something else, queuePrompt returns at once and reads the widgets later.
async function queueIsFree() {
    while (app.processingQueue) await new Promise((resolve) => setTimeout(resolve, 20));
}

async function listOf(node) {
    const asked = Object.fromEntries(QUESTION.map((name) => [name, widgetOf(node, name).value]));
    const response = await api.fetchApi("/ultragen/prompts", {
        method: "POST",
        headers: { "Content-Type": "application/json" },
        body: JSON.stringify(asked),
    });
    return response.json().catch(() => ({ error: `ComfyUI answered ${response.status}.` }));
}

function widgetOf(node, name) {
    return node.widgets.find((widget) => widget.name === name);
}

function say(detail) {
    app.extensionManager.toast.add({ severity: "warn", summary: "UltraGen Prompts", detail, life: 10_000 });
}
