"""M_t as a folder that can be published: the model as the run exported it, its card, and the base model's licence."""
