"""Setting the gain of attention heads while a model runs, in many rows at once.

1. Probe (``layout``): run the model on two tokens to find its attention modules, decoder layers and
   heads. ``probes`` finds out what the branches of the model may share, and ``projection`` which
   weights read the heads.
2. Intercept (``intercept``): route the model's attention, so that each ``AttentionCall`` is shown
   to the ``AttentionHook`` of the pass that is running (``hooks``). Afterwards no trace is left.
3. Plan (``plan``): a ``BranchPlan`` says which rows run in which layer, and the gain of every head
   in each row. ``ActivePositions`` says at which tokens gains act.
4. Clean run: run the model as it is. A ``RecordedPrompt`` (``shared_prompt``) keeps what entered
   each layer, and the keys and values that attention read.
5. Branches leave (``branching``): a ``BranchedForward`` runs the plan's rows. Below its first
   changed head a branch is its base row; there it joins the batch as a copy of the base row's
   hidden state.
6. Gains act (``branching``): on the output of a head, on its query, or on its attention to the
   profile, as a bias of log(gain) (``shared_prompt``).
7. The prompt is read once (``shared_prompt``): attention to the prompt and to a row's own tokens is
   computed separately and merged by log-sum-exp. In a generation both branches go on from one KV
   cache (``cache``).
8. Answer (``forward``): inside a block of steering, the model's forward calls are answered by these
   passes, and compiled steps run as one graph.
"""
