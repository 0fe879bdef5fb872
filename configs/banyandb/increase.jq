# What a counter grew by, series by series, from the answer to a query for its values (queries.bydbql):
#   curl -s http://banyandb:17913/api/v1/bydbql/query -d '{"query": "SELECT ..."}' | jq -f increase.jq
# A counter begins anew with each start of its agent. So rises are added up, and where it fell all that it has is new:
# the sum is never negative, and what happened before and after a restart is in it.
[.. | objects | select(has("timestamp") and has("tagFamilies") and has("fields"))]
| map({
    # Without its Z a time with a fraction sorts after the same second without one.
    at: (.timestamp | rtrimstr("Z")),
    series: ([.tagFamilies[].tags[] | {(.key): .value.str.value}] | add),
    value: (.fields[] | select(.name == "value") | .value.float.value // 0)
  })
| group_by(.series)
| map(
    sort_by(.at)
    | .[0].series + {
        increase: (
          reduce .[1:][] as $next (
            {last: .[0].value, sum: 0};
            {last: $next.value, sum: (.sum + $next.value - if $next.value < .last then 0 else .last end)}
          ) | .sum
        )
      }
  )
