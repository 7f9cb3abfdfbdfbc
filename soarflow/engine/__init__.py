"""Host 2, built in: runs AI Toolkit's job file on diffusers, accelerate and PEFT."""
