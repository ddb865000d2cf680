import { app } from "../../scripts/app.js";

// %date:yyyy-MM-dd% and %Node.widget% in a file's name: ComfyUI's page fills them in for its own nodes only.

app.registerExtension({
    name: "ultragen.prefix",
    nodeCreated(node) {
        if (node.comfyClass !== "UltraGenSaveVideo") return;
        const widget = node.widgets?.find((widget) => widget?.name === "filename_prefix");
        if (widget) widget.serializeValue = () => filledIn(widget.value);
    },
});

function filledIn(prefix) {
    const fill = window.comfyAPI?.utils?.applyTextReplacements;
    if (!fill || typeof prefix !== "string") return prefix;
    return prefix.replace(/%[^%]+%/g, (placeholder) => {
        const value = fill(app, placeholder);
        return value === placeholder || placeholder.startsWith("%date:") ? value : cut(value);
    });
}

// A prompt is longer than a file's name may be. Letters and bytes as in ultragen_core/video/prefix.py.
function cut(value) {
    const bytes = new TextEncoder().encode([...value].slice(0, 60).join(""));
    return new TextDecoder().decode(bytes.subarray(0, 120), { stream: true }); // without half a letter at the end
}
