-- Adds the run and the pod to a line of a log. A line that belongs to no run has no field `run`: an empty label would
-- be one stream with the logs of all clusters.

local function is_set(text)
  return text ~= nil and text ~= ""
end

-- The cluster of a RayJob has the run in a label of its pods. On a standing cluster, the log of a driver has the name
-- of the submission, which is that of the run with `ray job submit --submission-id`.
local function find_run(file)
  local run = os.getenv("RUN")
  if is_set(run) then
    return run
  end
  return string.match(file, "/job%-driver%-([^/]+)%.log$")
end

function label(tag, timestamp, record)
  local file = record["file"] or ""
  record["run"] = find_run(file)
  record["pod"] = os.getenv("POD")
  record["file"] = string.match(file, "[^/]+$")
  return 2, timestamp, record -- the record is another one, its time the same
end
