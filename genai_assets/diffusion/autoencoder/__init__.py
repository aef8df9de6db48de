"""The autoencoder room: teach the ``AutoencoderKL`` of a latent model to render the team's pictures better.

A latent model cannot draw what its decoder cannot render: fine lines, flat colour and lettering are lost before the
denoiser is asked. Belongs here: ``config`` (a run's numbers), ``pictures`` (where they come from), ``losses``,
``discriminator``, ``training`` (the loop), ``reconstruction`` (what comes back, and how far off it is) and
``fine_tuning`` (from a model folder to a model folder). The denoiser is trained elsewhere.
"""
