"""Programs that are good at a task: controllers, planners, scripts. One file a family; `collectors/tasks/` names them."""
