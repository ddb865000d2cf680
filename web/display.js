/** A widget that only shows `element`, `height()` pixels high, and is part of neither prompts nor workflows. */
export function display(node, name, element, height) {
    const widget = node.addDOMWidget(name, name, element, {
        serialize: false, // of prompts
        hideOnZoom: false,
        getMinHeight: height,
        getMaxHeight: height,
    });
    widget.serialize = false; // of workflows
    return widget;
}
