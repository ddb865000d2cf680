"""Where the core meets ComfyUI: model patchers, the memory manager, sampling hooks. The only floor that imports comfy."""
