import { api } from "../../scripts/api.js";
import { app } from "../../scripts/app.js";
import { everyNode } from "./graph.js";

// A button that queues one run per prompt of a list. Python parses the list; this script counts up the index.

const NODE = "UltraGenPrompts";
const LIST_WIDGETS = ["text", "file", "format"];

app.registerExtension({
    name: "ultragen.prompts",
    beforeRegisterNodeDef(nodeType, { name }) {
        if (name !== NODE) return;
        const onNodeCreated = nodeType.prototype.onNodeCreated;
        nodeType.prototype.onNodeCreated = function () {
            onNodeCreated?.apply(this, arguments);
            // Old frontends start with randomize. A workflow sets its value after this and before nodeCreated.
            const control = widgetOf(this, "index").linkedWidgets?.[0];
            if (control) control.value = "fixed";
        };
    },
    nodeCreated(node) {
        if (node.comfyClass !== NODE) return;
        const button = node.addWidget("button", "queue all prompts", "", () => queueAll(node), { serialize: false });
        button.serialize = false; // in workflows; the option above is for prompts
    },
});

let queueing = false;

async function queueAll(node) {
    if (queueing) return; // a second click would change the index too
    queueing = true;
    try {
        await queueEach(node);
    } finally {
        queueing = false;
    }
}

async function queueEach(node) {
    const linked = node.inputs?.find((input) => [...LIST_WIDGETS, "index"].includes(input.name) && input.link != null);
    if (linked) return say(`${linked.name} is linked, so the list is known only when the graph runs. Unlink it.`);
    const { count, error } = await listOf(node);
    if (error) return say(error);
    const index = widgetOf(node, "index");
    const widgets = [index, ...(index.linkedWidgets ?? [])];
    const before = widgets.map((widget) => widget.value);
    if (widgets[1]) widgets[1].value = "fixed";
    try {
        for (let number = 0; number < count; number++) {
            await queueIsFree();
            if (!isOpen(node)) {
                say(
                    `Queued ${number} of ${count} prompts, because the page now shows another workflow. Back in this` +
                        ` one, set index to ${number} for the next prompt, or to ${before[0]} as it was.`,
                );
                break;
            }
            index.value = number;
            await app.queuePrompt(0, 1);
            if (Object.keys(app.lastNodeErrors ?? {}).length) break; // refused; the frontend shows why
        }
    } finally {
        widgets.forEach((widget, place) => (widget.value = before[place]));
    }
}

/** Whether the node's workflow is the one that the page shows, which queuePrompt queues. */
const isOpen = (node) => everyNode(app.graph).includes(node);

// While another prompt is being queued, queuePrompt returns immediately and reads the widgets later.
async function queueIsFree() {
    while (app.processingQueue) await new Promise((resolve) => setTimeout(resolve, 20));
}

async function listOf(node) {
    const asked = Object.fromEntries(LIST_WIDGETS.map((name) => [name, widgetOf(node, name).value]));
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
