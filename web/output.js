import { app } from "../../scripts/app.js";
import { display } from "./display.js";
import { rootOf } from "./graph.js";

// ComfyUI's frontend shows a node's progress and its videos, but not its text output, such as the size that it chose or
// the files that it wrote. This shows that text in the node.
app.registerExtension({
    name: "ultragen.output",
    nodeCreated(node) {
        if (!isOurs(node)) return;
        const onExecuted = node.onExecuted;
        node.onExecuted = function (output) {
            onExecuted?.apply(this, arguments);
            show(node, output);
        };
    },
    // Another open workflow, or an earlier run, has come back: its nodes are new and have not executed.
    onNodeOutputsUpdated(outputs) {
        for (const [locator, output] of Object.entries(outputs)) {
            const node = nodeAt(locator);
            if (isOurs(node)) show(node, output);
        }
    },
});

const isOurs = (node) => node?.comfyClass?.startsWith("UltraGen");

/** Return the node of an output: "12" in the root graph, "SUBGRAPH:12" or, by the node around it, "5:12" in a subgraph. */
function nodeAt(locator) {
    const root = rootOf(app.graph);
    const path = locator.split(":");
    const id = path.pop();
    const inner = (graph, step) => root.subgraphs.get(step) ?? graph?.getNodeById(step)?.subgraph;
    return path.reduce(inner, root)?.getNodeById(id);
}

const NAME = "ultragen.output";
const LINE = 15; // pixels
const MAX_LINES = 6;

function show(node, output) {
    const text = [output?.text ?? []].flat().join("\n");
    const widget = node.widgets?.find((widget) => widget?.name === NAME) ?? (text && add(node));
    if (!widget?.element) return;
    widget.element.textContent = text;
    const [width, height] = node.computeSize();
    node.setSize([Math.max(node.size[0], width), Math.max(node.size[1], height)]);
}

function add(node) {
    const element = document.createElement("div");
    Object.assign(element.style, {
        boxSizing: "border-box",
        font: `11px/${LINE}px sans-serif`,
        overflow: "auto",
        overflowWrap: "anywhere",
        padding: "2px 6px",
        userSelect: "text",
        whiteSpace: "pre-wrap",
    });
    // Assume 6 pixels per character: the element cannot be measured before it is drawn.
    const width = () => Math.max(60, node.size[0] - 40);
    const lines = () => element.textContent.split("\n").map((line) => Math.ceil((6 * line.length) / width()));
    const height = () => 4 + LINE * Math.min(MAX_LINES, lines().reduce((a, b) => a + b, 0));
    return display(node, NAME, element, height);
}
